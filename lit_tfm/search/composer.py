"""The config of one trial, quickly: Hydra composes once for each combination of groups, plain values are then set.

What comes out equals `config.compose` of the same words; a trial costs a few milliseconds instead of a few hundred.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from lit_tfm import config
from lit_tfm.errors import UserError

_PLAIN = re.compile(r"[\w/][\w/.-]*")  # needs no quotes in Hydra's grammar, unless it is a number or one of these
_SPECIAL = {"null", "true", "false"}


class Composer:
    """Composes `words` (of the command line) with further values on top.

    `words` stand first, so what a trial sets wins over them.
    """

    def __init__(self, words: list[str], config_dir: str | None = None, allow_targets: Sequence[str] = ()) -> None:
        self.words, self.config_dir = list(words), config_dir
        # All that counts as typed: the words may be those of a sweep's yaml, which may be somebody else's.
        self._typed = [word("allow_targets", list(allow_targets))] if allow_targets else []
        self._bases: dict[tuple, tuple[DictConfig, DictConfig]] = {}
        self._finished: dict[tuple, DictConfig] = {}
        self._checked: set[tuple] = set()  # combinations of keys

    @cached_property
    def groups(self) -> set[str]:
        return set(config.groups())

    def compose(self, values: Mapping[str, Any]) -> DictConfig:
        """The finished config with `values` set: options of groups (`optimizer: adamw`) and plain dotted keys.

        Raises UserError as `config.compose` does.
        """
        chosen = {key: value for key, value in values.items() if key in self.groups}
        base, choices = self._base(chosen)
        cfg = copy.deepcopy(base)
        plain = {key: value for key, value in values.items() if key not in self.groups}
        try:
            for key, value in plain.items():
                _set(cfg, key, value)
        except config.COMPOSING as error:
            raise config.explain(error) from error
        keys = (_key(chosen), frozenset(plain))
        seen = keys in self._checked and not any(isinstance(value, Mapping) for value in plain.values())
        finished = config.finish(cfg, choices, self._typed, keys_checked=seen)
        self._checked.add(keys)
        return finished

    def base(self, chosen: Mapping[str, Any]) -> DictConfig:
        """The finished config of these options alone; not to be changed."""
        key = _key(chosen)
        if key not in self._finished:
            self._finished[key] = self.compose(chosen)
        return self._finished[key]

    def check_key(self, key: str, chosen: Mapping[str, Any]) -> None:
        """Raises UserError, with the nearest spelling, where the config of these options would not take `key`."""
        cfg = copy.deepcopy(self.base(chosen))
        if OmegaConf.select(cfg, key) is None:
            _set(cfg, key, None)
            config.check_keys(cfg)

    def options(self, group: str) -> list[str]:
        """The yamls of a group."""
        folders = [config.CONF, *([Path(self.config_dir)] if self.config_dir else [])]
        return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})

    def choices(self, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        """The option of every group."""
        return self._base(chosen)[1]

    def _base(self, chosen: Mapping[str, Any]) -> tuple[DictConfig, DictConfig]:
        key = _key(chosen)
        if key not in self._bases:
            words = [*self.words, *(word(group, option) for group, option in chosen.items())]
            self._bases[key] = config.compose_unfinished(words, self.config_dir)[:2]
        return self._bases[key]


def _key(chosen: Mapping[str, Any]) -> tuple:
    return tuple(sorted((group, json.dumps(option)) for group, option in chosen.items()))


def _set(cfg: DictConfig, key: str, value: Any) -> None:
    """As Hydra sets `key=value`: merged into what is there; only parameters of a `_target_` may be new."""
    free = key.split(".")[0] in config.TARGET_GROUPS
    if not free and not _holds(cfg, key):
        raise config.unknown_key(key)
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, merge=True, force_add=free)


def _holds(cfg: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and leaf in node


def word(key: str, value: Any) -> str:
    """`key=value` in Hydra's grammar, so that it is read back as the same value."""
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    return _text(str(value))


def _text(value: str) -> str:
    if value.isascii() and _PLAIN.fullmatch(value) and value.lower() not in _SPECIAL and not _is_number(value):
        return value
    # A backslash counts only in front of a quote (Hydra's grammar), so only such runs are doubled.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_word(text: str) -> tuple[str, Any]:
    """(key, value) of one `key=value` of the command line. Raises UserError for anything else."""
    homely = config.at_home(text)
    try:
        (override,) = OverridesParser.create().parse_overrides([homely])
    except config.COMPOSING as error:
        raise config.explain(error) from error
    if override.is_sweep_override():
        raise UserError(
            f"{text}: several values of one key; type space.{override.key_or_group}={{choices:[...]}} to search them"
        )
    if override.is_delete():
        return f"~{override.key_or_group}", None
    return override.get_key_element().lstrip("+"), _bare(override.value())


def _bare(value: Any) -> Any:
    """Without the parser's own types: quoted texts become texts."""
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _bare(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else str(getattr(value, "text", value))
