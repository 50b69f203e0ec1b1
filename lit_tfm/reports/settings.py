"""The settings of runs: config.yaml as flat names, and which of them tell runs apart.

OmegaConf reads two hundred configs in seconds; they are resolved, so a plain yaml reader with OmegaConf's idea of
numbers does it in a tenth.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

# Where a run was put and how it was started: not what it is.
PLACE = {"name", "output_dir", "resume", "dry_run", "cache_dir", "allow_targets"}
UNSET = "–"  # a key that this run's config does not have

_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
    |\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """As OmegaConf reads: 1e-3 is a number, 2026-11-22 a text."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in known if not tag.endswith((":timestamp", ":float"))]
        for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load_yaml(path: Path) -> dict[str, Any]:
    """Raises ValueError where the file holds no table, and what the yaml reader raises.

    A run's config has no aliases; a few lines of them can stand for gigabytes, or for themselves.
    """
    text = path.read_text(encoding="utf-8")
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
        raise ValueError("it holds aliases, which no run writes")
    content = yaml.load(text, Loader=_Loader)
    if not isinstance(content, dict):
        raise ValueError("it holds no table")
    return content


def scalar(text: str) -> Any:
    """The value of `key=text`."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"model": {"d_model": 4}, "choices": {"model": "gpt"}} -> {"model": "gpt", "model.d_model": 4}; lists as text."""
    chosen = config.get("choices")
    result = {str(group): _plain(choice) for group, choice in chosen.items()} if isinstance(chosen, Mapping) else {}
    for key, value in config.items():
        if key not in PLACE and key != "choices":
            _flatten(str(key), value, result)
    return result


def _flatten(key: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _flatten(f"{key}.{name}", inner, into)
    else:
        into[key] = _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def differing(several: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names whose values are not the same everywhere, in the order of the configs.

    What only says a difference again is left out: `model._target_` where `model` differs as well.
    """
    several = list(several)
    names = list(dict.fromkeys(name for settings in several for name in settings))
    found = [name for name in names if len({_key(settings.get(name, UNSET)) for settings in several}) > 1]
    return [n for n in found if not (n.endswith(("._target_", "._partial_")) and n.rpartition(".")[0] in found)]


def _key(value: Any) -> Any:
    """1 and 1.0 are one setting, 1 and true are two."""
    return (isinstance(value, bool), value)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """`model.d_model` -> `d_model`, as long as that says which one is meant."""
    names = list(names)
    short: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        short[name] = next(e for e in endings if sum(n == e or n.endswith(f".{e}") for n in names) == 1 or e == name)
    return short
