"""Files that a run's config names, found again from another working directory.

A relative path in config.yaml starts where the run was started; environment.json says where that was. A verb that
reads the run later looks from its own working directory first, so that a run and its data can be moved together.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_tfm.errors import UserError
from lit_tfm.runs import RunFolder


def find(cfg: DictConfig, run: RunFolder, *keys: str) -> DictConfig:
    """A copy of the run's config in which the paths at `keys` ("data.path") stand as they are found from here.

    Raises UserError that says where was looked.
    """
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    for key in keys:
        given = OmegaConf.select(cfg, key)
        if given is not None:
            OmegaConf.update(cfg, key, _found(key, plain(given), run), merge=False)
    return cfg


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _found(key: str, given: Any, run: RunFolder) -> Any:
    if isinstance(given, Mapping):
        return {split: _found(key, part, run) for split, part in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [_found(key, part, run) for part in given]
    places = candidates(str(given), run)
    for place in places:
        if place.exists() or (glob.has_magic(str(place)) and glob.glob(str(place), recursive=True)):
            return str(place)
    looked = " and ".join(map(str, places))
    raise UserError(f"{run.path} needs {given}, which is not there: looked for {looked}; type {key}=WHERE IT IS NOW")


def candidates(given: str, run: RunFolder) -> list[Path]:
    """Where a path of the run's config may be: from here, and from where the run was started."""
    path = Path(given).expanduser()
    start = started_in(run)
    return [path] if path.is_absolute() or start is None else list(dict.fromkeys([path.resolve(), start / path]))


def started_in(run: RunFolder) -> Path | None:
    """The working directory of the run's training; None where the run does not say."""
    try:
        directory = run.read_json("environment.json").get("directory")
    except (OSError, ValueError, UserError):
        return None
    return Path(directory) if directory else None
