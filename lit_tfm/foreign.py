"""Yaml files that may come from somebody else: a run's config.yaml, an experiment or a sweep given by its path.

Reading them executes nothing (OmegaConf's loader is yaml's safe one), but an interpolation is a small program:
`${oc.env:TOKEN}` would copy a secret into the run's records, and other resolvers make nodes that nobody has checked.
Imports no torch.
"""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lit_tfm.errors import UserError

_REFERENCE = re.compile(r"\$\{[\w.\[\]-]+\}")
_NAME = re.compile(r"[\w-][\w.-]*")  # no path
_OVERRIDE = re.compile(r"^(override|optional)\s+")


def load_config(path: Path) -> DictConfig:
    """A run's config.yaml: a table with every value written out. Raises UserError for anything else."""
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: can't be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path}: holds no table of keys, as the config of a run does")
    check_references(OmegaConf.to_container(cfg), path, own_keys=False)
    return cfg


def check_references(node: Any, source: Any, own_keys: bool = True) -> None:
    """Raises UserError for interpolations; with `own_keys` those that name other keys (`${seed}`) pass."""
    if isinstance(node, dict):
        for pair in node.items():
            check_references(pair, source, own_keys)
    elif isinstance(node, (list, tuple)):
        for value in node:
            check_references(value, source, own_keys)
    elif isinstance(node, str) and "${" in (_REFERENCE.sub("", node) if own_keys else node):
        allowed = "may refer to keys of the config only, e.g. ${seed}" if own_keys else "of a run has every value in it"
        raise UserError(f"{source}: {node}: a yaml {allowed}; write the value, or type it on the command line")


def check_resolved(node: Any, key: str = "") -> None:
    """Raises UserError for a text that would be an interpolation if it were read once more.

    `${a}{oc.env:TOKEN}` refers to keys only, and is another program where `a` is a `$`.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            check_resolved(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            check_resolved(value, f"{key}[{place}]")
    elif isinstance(node, str) and "${" in node:
        raise UserError(f"{key}={node}: stands there after all references were read; write a text without '${{'")


def check_defaults(entries: Any, groups: list[str], source: Any) -> None:
    """Raises UserError where a defaults list names more than options of the groups by their plain names.

    Hydra takes an option for a path, so `../../x` would read a file beside conf/, which may set Hydra's own keys.
    """
    for entry in entries if isinstance(entries, list) else [entries]:
        for key, value in entry.items() if isinstance(entry, dict) else [("", entry)]:
            group = _OVERRIDE.sub("", str(key)).strip("/")
            options = value if isinstance(value, list) else [value]
            named = all(option is None or _NAME.fullmatch(str(option)) for option in options)
            if (group and group not in groups) or not named:
                said = f"{key}: {value}" if key else entry
                raise UserError(f"{source}: defaults: {said}: a group and the name of one of its yamls are allowed")
