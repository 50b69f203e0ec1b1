"""What a run folder has learnt: its task with the weights of one checkpoint, and whether they belong together.

Weights are read from safetensors, or from a .ckpt with `weights_only=True`: a file from elsewhere can't run code.
"""

from pathlib import Path

from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from lit_tfm import targets
from lit_tfm.build import build_task, facts_of
from lit_tfm.callbacks.checkpoint_files import head, read
from lit_tfm.callbacks.replacing import is_sharded
from lit_tfm.errors import UserError, nearest
from lit_tfm.runs import RunFolder
from lit_tfm.tasks.base import Task


def task_class(run: RunFolder) -> type[Task]:
    """The task a run was trained on, without building anything. Raises UserError where the config can't be read."""
    cfg = config_of(run)
    try:
        return targets.find(cfg.task._target_, "task")
    except UserError as error:
        if error.__cause__ is None:  # no config may name it
            raise
        raise UserError(
            f"{run.path}: its task {cfg.task._target_} can't be imported; put its folder into PYTHONPATH"
        ) from error


def load(run: RunFolder, checkpoint: str | None = None) -> tuple[Task, Path]:
    """The task in eval mode on the CPU, and the file its weights are from.

    `checkpoint`: best, last, or a .safetensors or .ckpt file; None: best where there is one, else last. Raises
    UserError for a run without these weights, for files that can't be read, and for a tokenizer that is not theirs.
    """
    cfg, file = config_of(run), checkpoint_file(run, checkpoint)
    for name in ("data.json", "tokenizer.json"):
        if not (run / name).is_file():
            raise UserError(f"{run.path}: the run has no {name}, so its text can't be read; copy the whole folder")
    try:
        facts, trained_with = facts_of(run), run.read_json("data.json").get("tokenizer")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run / 'data.json'}: can't be read ({type(error).__name__}: {error})") from error
    state, told = weights(file)
    for where, tokenizer in (("data.json", trained_with), (file.name, told)):
        if tokenizer is not None and tokenizer != facts.tokenizer.hash:
            raise UserError(
                f"{run / 'tokenizer.json'}: another tokenizer ({facts.tokenizer.hash}) than the run was trained with "
                f"({tokenizer} in {where}); put the run's own tokenizer.json back"
            )
    task = build_task(cfg, facts)
    fit(task, state, file)
    return task.eval(), file


def config_of(run: RunFolder) -> DictConfig:
    """Raises UserError where config.yaml is no config of a run."""
    try:
        cfg = run.config()
        if all(isinstance(cfg[group]._target_, str) for group in ("model", "task", "data", "optimizer", "schedule")):
            return cfg
        raise ValueError("a part has no _target_")
    except Exception as error:  # what yaml and OmegaConf raise has no common base
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{run / 'config.yaml'}: not the config of a run ({why}); name another run folder") from error


def checkpoint_file(run: RunFolder, checkpoint: str | None) -> Path:
    """Where the weights are. Raises UserError, naming what there is."""
    folder = run / "checkpoints"
    there = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".ckpt"))
    if not there and checkpoint in (None, "best", "last"):
        try:
            status = run.status() or "of unknown status"
        except ValueError:
            status = "of unreadable summary.json"
        raise UserError(
            f"{run.path}: the run ({status}) has no weights yet; train it, e.g. python -m lit_tfm.train "
            f"resume={run.path}, or name a checkpoint file"
        )
    if checkpoint is None:
        names = ["best", "last"]
    elif checkpoint in ("best", "last"):
        names = [checkpoint]
    else:
        return _named(folder, checkpoint, there)
    for name in names:
        for suffix in (".safetensors", ".ckpt"):
            if f"{name}{suffix}" in there:
                return folder / f"{name}{suffix}"
    raise UserError(f"{run.path}: no checkpoint {' or '.join(names)}; there is {', '.join(there)}")


def _named(folder: Path, checkpoint: str, there: list[str]) -> Path:
    for path in (Path(checkpoint).expanduser(), folder / checkpoint):
        if path.is_file() or is_sharded(path):
            return path
    options = ["best", "last", *there]
    near = nearest(checkpoint, options) or f"; type {', '.join(options)} or a file"
    raise UserError(f"checkpoint {checkpoint}: there is no such file{near}")


def weights(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """Tensors by name, and the hash of the tokenizer they were trained with where a .ckpt (beside) tells it."""
    try:
        if file.suffix == ".ckpt":
            saved = read(file)
            state, told = dict(saved["state_dict"]), saved.get("lit_tfm", {}).get("tokenizer")
            if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
                raise ValueError(f"{odd[0]} is no tensor")
            return state, told
        state, whole = load_file(file), file.with_suffix(".ckpt")
        return state, head(whole)[0].get("lit_tfm", {}).get("tokenizer") if whole.exists() else None
    except Exception as error:  # bytes from anywhere: whatever a reader stumbles over, the file is broken
        why = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(f"{file}: no checkpoint that can be read ({why}); type another one, e.g. last") from error


def fit(task: Task, state: dict[str, Tensor], file: Path) -> None:
    """Put the weights in, all of them. Raises UserError where names or shapes differ."""
    try:
        result = task.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        why = str(error).splitlines()[-1].strip()[:200]
        raise UserError(f"{file}: does not fit the run's config.yaml ({why})") from error
    wanted = {name for name, _ in task.named_parameters()}  # a tied weight stands under one name only
    missing = sorted(wanted.intersection(result.missing_keys))
    if result.unexpected_keys or missing:
        names = ", ".join([*result.unexpected_keys, *missing][:4])
        raise UserError(f"{file}: does not fit the run's config.yaml (it differs in {names})")
