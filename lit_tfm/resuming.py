"""Going on with a run: from which checkpoint, and whether it is the same run.

What matters is what weights, data order, loss and schedule follow from; a config that differs there is refused, with
every such key and both values, unless `resume_force=true`. What does not matter stands in `FREE` and `BESIDE`.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_tfm import targets
from lit_tfm.callbacks.checkpoint_files import check, newest
from lit_tfm.callbacks.replacing import is_sharded
from lit_tfm.errors import UserError
from lit_tfm.holding import held
from lit_tfm.runs import ENDED, RunFolder

MATTERS = ("model", "task", "data", "tokenizer", "optimizer", "schedule", "callbacks", "trainer", "seed")
# Keys that may differ: where and how fast the run computes, how long it is, what is looked at on the way.
FREE = {
    "model/compile",
    "model/activation_checkpointing",
    "task/bad_steps",
    "data/path",  # what is read there is compared by its hash, as the tokenizer is
    "data/hub",
    "data/fallback",
    "data/num_workers",
    "data/test_limit",
    "tokenizer/path",
}
# Callbacks of conf/callbacks/ that only look on, save or end the run; any other may change it.
BESIDE = {"checkpoints", "layout", "samples", "confusion", "attention", "projector", "throughput", "early_stopping"}
TRAINER = {"trainer/precision"}  # the rest of the trainer is where, how long and how often


def check_same_run(cfg: DictConfig, run: RunFolder, data: dict[str, Any] | None = None) -> None:
    """Raises UserError where the config differs from the run's in what matters, naming each key with both values.

    `data`: what the data says of itself (data.json), where it is known by now; it is compared by its hash. With
    `resume_force` only what can't be gone on with is refused: the state of another optimizer.
    """
    old = run.config()
    if cfg.get("resume_force"):
        if old.optimizer._target_ != cfg.optimizer._target_:
            raise UserError(
                f"resume={run.path}: {cfg.optimizer._target_} can't go on with the state of {old.optimizer._target_}; "
                f"type init_from={run.path} to start from its weights"
            )
        return
    differing = differences(old, cfg)
    then = run.read_json("data.json") if data is not None and (run / "data.json").exists() else {}
    if then.get("hash") and then["hash"] != data["hash"]:
        differing.append(f"the data's hash: {then['hash'][:12]} there, {data['hash'][:12]} here")
    if differing:
        raise UserError(
            f"resume={run.path}: it was another run ({'; '.join(differing)}); type resume={run.path} alone to go on "
            "with its own config, resume_force=true to go on with this one, or init_from= to start from its weights"
        )


def differences(old: DictConfig, new: DictConfig) -> list[str]:
    """`model.d_model: 256 there, 128 here` for each key that matters, in the config's order."""
    one, two = plain(old), plain(new)
    keys = [*two, *(key for key in one if key not in two)]
    found = []
    for key in keys:
        there, here = one.get(key, default(old, key)), two.get(key, default(new, key))
        if there != here:
            found.append(f"{key.replace('/', '.')}: {shown(there)} there, {shown(here)} here")
    return found


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Every key that matters, flat: model/d_model."""
    kept = {group: OmegaConf.to_container(cfg[group]) for group in MATTERS if isinstance(cfg.get(group), DictConfig)}
    kept["callbacks"] = {name: node for name, node in kept.get("callbacks", {}).items() if name not in BESIDE}
    flat = {"seed": cfg.get("seed"), **_flat(kept)}
    return {key: value for key, value in flat.items() if not _free(key)}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Unlike HParams' it keeps null, which may be another thing than a default, and what is called."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}/") for free in FREE) or (
        key.startswith("trainer/") and key not in TRAINER
    )


def default(cfg: DictConfig, key: str) -> Any:
    """What a key means that the config does not name: the default of the parameter of its part."""
    group, _, name = key.partition("/")
    node = cfg.get(group)
    if not isinstance(node, DictConfig) or "_target_" not in node or name.startswith("_"):
        return None
    call = targets.find(node._target_, group)
    if is_dataclass(config := getattr(call, "Config", None)):
        known = {field.name: field.default for field in fields(config)}
    else:
        owners = call.__mro__ if inspect.isclass(call) else (call,)
        signatures = [inspect.signature(o.__init__ if inspect.isclass(o) else o).parameters for o in reversed(owners)]
        known = {p.name: p.default for parameters in signatures for p in parameters.values()}
    value = known.get(name)
    return None if value is inspect.Parameter.empty else value


def shown(value: Any) -> str:
    return "null" if value is None else str(value)


# ---- from where ------------------------------------------------------------------------------------------------


def find_checkpoint(cfg: DictConfig, say: Callable[[str], None]) -> Path | None:
    """The whole checkpoint that `resume` names; with `auto`, None where there is nothing to go on from.

    Of a folder it is the newest that is whole; `say` is told of each newer one that is not. A file that is named must
    be whole itself.
    """
    if cfg.resume is None:
        return None
    if cfg.resume == "auto":
        folder = unfinished(cfg)
        if folder is None:
            return None
    else:
        folder = Path(cfg.resume)
        if folder.is_file() or is_sharded(folder):
            if wrong := check(folder):
                raise UserError(f"resume={folder}: the checkpoint is broken ({wrong}); type resume={folder.parents[1]}")
            return folder
    found, broken = newest(folder / "checkpoints", cfg.resume)
    for notice in broken:
        say(f"{notice}; going on from {found.name}")
    return found


def unfinished(cfg: DictConfig) -> Path | None:
    """output_dir, where it is named, else the newest run of this name that nobody trains and that has not ended.

    Only where it has a checkpoint.
    """
    if cfg.output_dir:
        return Path(cfg.output_dir) if newest_time(Path(cfg.output_dir)) else None
    folders = [folder for folder in (Path("outputs") / str(cfg.name)).glob("*") if newest_time(folder)]
    left = (folder for folder in folders if RunFolder(folder).status() not in ENDED and not held(folder))
    return max(left, key=newest_time, default=None)


def newest_time(run: Path) -> float:
    """When a checkpoint was last taken; 0 where there is none."""
    return max((path.stat().st_mtime for path in (run / "checkpoints").glob("[!.]*.ckpt")), default=0.0)
