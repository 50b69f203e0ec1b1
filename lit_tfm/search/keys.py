"""The keys that a sweep's expressions may read, and the values the config itself has for them."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_tfm.errors import UserError
from lit_tfm.search.composer import Composer


class Keys:
    """The words an expression may read: the keys of the space, those the config holds, its groups, and `more`."""

    def __init__(self, raw: Mapping[str, Any], composer: Composer, more: tuple[str, ...] = ()) -> None:
        self.composer = composer
        self._names = {*map(str, raw), *more}

    def __contains__(self, name: str) -> bool:
        if name in self._names or name in self.composer.groups:
            return True
        return "." in name and (name in self._config_keys() or self._parameter(name))

    def __iter__(self) -> Iterator[str]:
        return iter([*self._names, *self.composer.groups, *self._config_keys()])

    def _config_keys(self) -> set[str]:
        return set(flat(self.composer.base({})))

    def _parameter(self, name: str) -> bool:
        """Whether it can be given to a part, though no yaml names it."""
        try:
            self.composer.check_key(name, {})
        except UserError:
            return False
        return True

    def value(self, name: str, chosen: Mapping[str, Any], cfg: DictConfig | None = None) -> Any:
        """What the config itself holds: a group's option, a key's value, or what the model's config derives."""
        if name in self.composer.groups:
            return self.composer.choices(chosen).get(name)
        cfg = cfg if cfg is not None else self.composer.base(chosen)
        value = OmegaConf.select(cfg, name)
        if value is None and name.startswith("model."):
            from lit_tfm.search.cost import model_config  # optional: torch

            value = getattr(model_config(cfg), name.partition(".")[2], None)
        return value


def flat(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all leaves."""
    for key, value in node.items_ex(resolve=False):
        if isinstance(value, DictConfig):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
