"""One entry of a space: what it is, how it is read from a sweep's yaml, and what Optuna is asked for it."""

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_tfm.errors import UserError, nearest
from lit_tfm.search.expressions import Expression, is_number
from lit_tfm.search.keys import Keys

_DIVISORS = re.compile(r"divisors of ([\w.]+)(?: with head size in \[([^\]]*)\])?")
_WORD = re.compile(r"\w+")
_FORMS = "{low, high}, {choices}, arithmetic such as 4 * model.d_model, or divisors of KEY with head size in [32, 64]"


@dataclass(frozen=True)
class Number:
    """Whole if `low`, `high` and `step` are."""

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: Expression | None = None

    def draw(self, trial, name: str) -> float:
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step or 1)
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def plain(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}


@dataclass(frozen=True)
class Choice:
    """One of several values. Lists are drawn by their text, which Optuna can store."""

    key: str
    choices: tuple[Any, ...]
    when: Expression | None = None

    def draw(self, trial, name: str) -> Any:
        return trial.suggest_categorical(name, [label(choice) for choice in self.choices])

    def value(self, drawn: Any) -> Any:
        return next((choice for choice in self.choices if label(choice) == drawn), drawn)

    def plain(self) -> dict[str, Any]:
        return {"choices": list(self.choices)}


@dataclass(frozen=True)
class Divisor:
    """`of` divided by a head size, which is what is drawn."""

    key: str
    of: str
    sizes: tuple[int, ...]
    when: Expression | None = None

    def draw(self, trial, name: str) -> int:
        return trial.suggest_categorical(name, list(self.sizes))

    def plain(self) -> dict[str, Any]:
        return {"divisors of": self.of, "head size": list(self.sizes)}


@dataclass(frozen=True)
class Derived:
    """Computed from other keys; nothing is drawn."""

    key: str
    expression: Expression
    when: Expression | None = None

    def plain(self) -> dict[str, Any]:
        return {"value": normal(self.expression)}


@dataclass(frozen=True)
class Constant:
    """A value that is set where its condition holds."""

    key: str
    constant: Any
    when: Expression | None = None

    def plain(self) -> dict[str, Any]:
        return {"value": self.constant}


Entry = Number | Choice | Divisor | Derived | Constant


# ---- reading -------------------------------------------------------------------------------------------------------


def read_entry(key: str, raw: Any, keys: Keys) -> Entry:
    """One entry of the yaml. Raises UserError, in one line that begins with `space.KEY`, for what is none."""
    given = dict(raw) if isinstance(raw, Mapping) else {"value": raw}
    when = prefixed(key, lambda: Expression(given["when"], keys, condition=True)) if "when" in given else None
    body = {str(name): value for name, value in given.items() if name != "when"}
    if not isinstance(raw, Mapping) and not isinstance(raw, str):
        raise UserError(
            f"space.{key}: {raw} is no entry; write {_FORMS}; a value that stays goes to fixed: {key}={raw}"
        )
    kinds = {"low": ("low", "high", "log", "step"), "choices": ("choices",), "value": ("value",)}
    kind = next((kind for kind, names in kinds.items() if set(names) & set(body)), None)
    if kind is None or any(name not in kinds[kind] for name in body):
        offered = [name for names in kinds.values() for name in names] + ["when"]
        near = nearest(next((name for name in body if name not in offered), ""), offered)
        raise UserError(f"space.{key}: {as_json(dict(given))} is no entry{near}; write {_FORMS}")
    if kind == "low":
        return _number(key, body, when)
    if kind == "choices":
        return _choice(key, body["choices"], when)
    return _value(key, body["value"], when, keys)


def _number(key: str, body: dict[str, Any], when: Expression | None) -> Number:
    low, high, log, step = body.get("low"), body.get("high"), body.get("log", False), body.get("step")

    def refuse(reason: str) -> UserError:
        return UserError(f"space.{key}: {reason}")

    for name, value in (("low", low), ("high", high), *((("step", step),) if step is not None else ())):
        if not is_number(value):
            raise refuse(f"{name}={value}: a number is needed, e.g. {{low: 1e-4, high: 1e-2, log: true}}")
    if not isinstance(log, bool):
        raise refuse(f"log={log}: write true or false")
    if low >= high:
        raise refuse(f"low={low:g}, high={high:g}: an empty range; low must be below high")
    if log and low <= 0:
        raise refuse(f"log: true needs low above 0, not {low:g}")
    if log and step is not None:
        raise refuse("step and log exclude each other; leave one out, or list the values as choices")
    if step is not None and step <= 0:
        raise refuse(f"step={step:g}: must be above 0")
    if all(isinstance(value, int) for value in (low, high, *([step] if step is not None else []))):
        _check_step(key, low, high, step or 1)
        return Number(key, low, high, log, step, when)
    if step is not None:
        _check_step(key, low, high, step)
    return Number(key, float(low), float(high), log, None if step is None else float(step), when)


def _check_step(key: str, low: float, high: float, step: float) -> None:
    times = (high - low) / step
    if abs(times - round(times)) > 1e-6 or round(times) < 1:
        last = low + int(times) * step
        near = f"high={last:g} or {last + step:g}" if int(times) else f"high={low + step:g}"
        raise UserError(
            f"space.{key}: high={high:g} is no whole number of steps of {step:g} above low={low:g}; type {near}"
        )


def _choice(key: str, choices: Any, when: Expression | None) -> Choice:
    if not isinstance(choices, (list, tuple)) or not choices:
        raise UserError(f"space.{key}: choices={as_json(choices)}: a list with at least one value is needed")
    kinds = {_kind_of(choice) for choice in choices} - {"null"}
    if len(kinds) > 1:
        raise UserError(
            f"space.{key}: choices={as_json(choices)} are of mixed type ({', '.join(sorted(kinds))}); "
            "give numbers, or texts, or true and false"
        )
    if "mapping" in kinds:
        raise UserError(
            f"space.{key}: choices={as_json(choices)}: numbers, texts, true and false, null or lists are needed"
        )
    labels = [label(choice) for choice in choices]
    if len({(type(label) is bool, label) for label in labels}) < len(labels):
        raise UserError(f"space.{key}: choices={as_json(choices)}: a value stands there twice")
    return Choice(key, tuple(choices), when)


def _value(key: str, value: Any, when: Expression | None, keys: Keys) -> Entry:
    text = " ".join(str(value).split())
    if not isinstance(value, str) or (_WORD.fullmatch(text) and text not in keys):
        if when is None:
            raise UserError(f"space.{key}: {text} is one value only; what stays the same goes to fixed: {key}={text}")
        return Constant(key, value, when)
    if text.startswith("divisors"):
        return _divisor(key, text, when, keys)
    return Derived(key, prefixed(key, lambda: Expression(text, keys)), when)


def _divisor(key: str, text: str, when: Expression | None, keys: Keys) -> Divisor:
    found = _DIVISORS.fullmatch(text)
    if not found or not found[2]:
        raise UserError(f"space.{key}: {text!r}: write divisors of model.d_model with head size in [32, 64, 128]")
    if found[1] not in keys:
        raise UserError(f"space.{key}: {found[1]}: no such key{nearest(found[1], keys)}")
    try:
        sizes = tuple(int(size) for size in found[2].split(","))
    except ValueError:
        raise UserError(f"space.{key}: head size in [{found[2]}]: whole numbers are needed") from None
    if min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise UserError(f"space.{key}: head size in [{found[2]}]: different whole numbers from 1 on are needed")
    return Divisor(key, found[1], sizes, when)


# ---- telling -------------------------------------------------------------------------------------------------------


def name_of(entry: Entry) -> str:
    """What Optuna calls it."""
    return f"{entry.key}/head_size" if isinstance(entry, Divisor) else entry.key


def label(choice: Any) -> Any:
    """What Optuna stores for a choice: it takes no lists."""
    return as_json(choice) if isinstance(choice, (list, tuple)) else choice


def told(entry: Entry) -> dict[str, Any]:
    return entry.plain() | ({"when": normal(entry.when)} if entry.when else {})


def normal(expression: Expression) -> str:
    """The same text however it was spaced and bracketed."""
    return ast.unparse(ast.parse(" ".join(expression.text.split()), mode="eval"))


def prefixed(key: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except UserError as error:
        raise UserError(f"space.{key}: {error}") from error


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else "mapping" if isinstance(value, Mapping) else "list"


def as_json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
