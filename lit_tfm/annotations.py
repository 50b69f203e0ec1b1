"""Whether a value from a config is of the kind that the parameter it goes to is annotated with.

Only what a yaml can hold is judged: null, true and false, numbers, texts, lists and mappings. An annotation of any
other kind, such as a class, takes everything.
"""

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NAMES = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
    Sequence: "a list",
    Iterable: "a list",
    Mapping: "a mapping",
}


@cache
def hints(made: Callable) -> dict[str, Any]:
    """The annotations of the parameters of a function or class, with those that a class passes on to its bases."""
    if not inspect.isclass(made):
        return get_type_hints(made)
    if is_dataclass(getattr(made, "Config", None)):  # a model: TransformerConfig.check says what to type instead
        return {}
    owners = [owner for owner in made.__mro__ if "__init__" in vars(owner) and owner is not object]
    found: dict[str, Any] = {}
    for owner in owners:
        found = {**get_type_hints(owner.__init__), **found}
        passes_on = inspect.signature(owner.__init__).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in passes_on):
            break
    return found


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is one of `hint`'s: whole numbers are numbers, and true is neither."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin not in NAMES:
        return True
    if origin in (int, float):
        return isinstance(value, int if origin is int else (int, float)) and not isinstance(value, bool)
    if origin is Path:
        return isinstance(value, str)
    if NAMES[origin] == "a list":
        if not isinstance(value, list):
            return False
        kinds = inner[: 1 if Ellipsis in inner else None] or (Any,)
        if origin is tuple and len(kinds) > 1:  # tuple[float, float, float]
            return len(value) == len(kinds) and all(map(fits, value, kinds))
        return all(fits(one, kinds[0]) for one in value)
    if NAMES[origin] == "a mapping":
        return isinstance(value, dict) and all(fits(one, inner[1] if inner else Any) for one in value.values())
    return isinstance(value, origin)


def told(hint: Any) -> str:
    """`hint` in words: `int | None` is "a whole number or null"."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(told(one) for one in inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple and inner and Ellipsis not in inner:
        return f"a list of {len(inner)}: {', '.join(told(one) for one in inner)}"
    return NAMES.get(origin, getattr(origin, "__name__", str(origin)))
