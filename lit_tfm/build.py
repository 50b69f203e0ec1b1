"""The only wiring: config -> (data, task, trainer), and run folder -> task.

Order matters: the data fixes the tokenizer, the tokenizer the vocabulary, the vocabulary the model.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from lit_tfm import targets
from lit_tfm.callbacks.auto_batch import AutoBatch
from lit_tfm.callbacks.checkpoint_files import AtomicCheckpointIO, head
from lit_tfm.callbacks.checkpoints import Checkpoints
from lit_tfm.callbacks.metrics_csv import MetricsCsv
from lit_tfm.callbacks.pace import NEVER, Pace
from lit_tfm.callbacks.preemption import Preemption
from lit_tfm.callbacks.progress_bar import ProgressBar
from lit_tfm.callbacks.record import Record
from lit_tfm.callbacks.sharding import Sharding
from lit_tfm.callbacks.tensorboard import HParams
from lit_tfm.callbacks.trial import TrialReport
from lit_tfm.callbacks.unwatched import Unwatched, leave_out
from lit_tfm.callbacks.watchdog import Watchdog
from lit_tfm.callbacks.whereabouts import Whereabouts
from lit_tfm.data.facts import DataFacts, SplitStats
from lit_tfm.data.module import TextData
from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.errors import UserError
from lit_tfm.hardware import Hardware
from lit_tfm.launch import another_failed, tell_hang
from lit_tfm.runs import RunFolder
from lit_tfm.tasks.base import Task
from lit_tfm.tasks.budget import Budget, seconds

HPARAM_GROUPS = ("model", "task", "data", "tokenizer", "optimizer", "schedule")


@dataclass
class Parts:
    """Everything of a run, joined and ready to train."""

    data: TextData
    task: Task
    hardware: Hardware
    transfer: "Transfer | None" = None
    trainer: Trainer | None = None
    deadline: float | None = None  # of time.time, when the run is to stop by itself


@dataclass
class Transfer:
    """What `init_from` took over, and what it could not."""

    source: Path
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the new task, not in the old weights
    unused: list[str] = field(default_factory=list)  # in the old weights, not in the new task
    reshaped: list[str] = field(default_factory=list)  # in both, with other shapes


def build(cfg: DictConfig, hardware: Hardware) -> Parts:
    """Data prepared, model and task built; no folder touched but the cache. Raises UserError for what does not fit."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    if cfg.test and "test" not in data.facts.splits:
        raise UserError(
            f"test=true: {data.records()['name']} has no test split; type data.holdout.test=0.1 or test=false"
        )
    task = build_task(cfg, data.facts)
    key = "block_size" if hasattr(data, "block_size") else "max_length"
    task.check_length(getattr(data, key), f"data.{key}")
    data.connect(task.collator(), cfg.seed)
    task.facts = data.facts  # what is cut and padded depends on the collator
    task.seed = cfg.seed
    task.flops_per_token = task.training_flops(tokens_an_example(data))
    task.progress.max_steps = optimizer_steps(cfg, data)
    task.progress.bound(budget_of(cfg.budget, hardware), task.flops_per_token)
    if task.progress.max_steps is None and task.progress.asked is None:
        raise UserError(
            "trainer.max_steps, trainer.max_epochs and budget are all null: the run would not end; type one of them"
        )
    transfer = load_weights(task, Path(cfg.init_from)) if cfg.init_from else None
    return Parts(data, task, hardware, transfer)


def build_data(cfg: DictConfig) -> TextData:
    cache_dir = Path(cfg.cache_dir).expanduser()
    data = make(cfg.data, tokenizer=make(cfg.tokenizer), seed=cfg.seed, cache_dir=cache_dir)
    data.prepare_data()
    return data


def build_task(cfg: DictConfig, facts: DataFacts) -> Task:
    model = make(cfg.model, vocab_size=facts.tokenizer.vocab_size)
    optimizer, schedule = make(cfg.optimizer), make(cfg.schedule)
    return make(cfg.task, model=model, facts=facts, optimizer=optimizer, schedule=schedule)


def make(node: DictConfig, **supplied: Any) -> Any:
    """The node's `_target_`, called with its keys and `supplied`. The config has been resolved (`config.resolve`).

    Not Hydra's `instantiate`: that reads interpolations a second time after they were checked, turns dataclasses into
    configs, copies modules, and hides a UserError in an exception of its own. Raises UserError for a `_target_` that no
    config may name.
    """
    return targets.call(OmegaConf.to_container(node), node._get_full_key(""), **supplied)


def tokens_an_example(data: TextData) -> int:
    """Mean tokens of a training example, which the cost of attention depends on."""
    train = data.facts.splits["train"]
    return max(1, round(train.tokens / max(1, train.examples)))


def optimizer_steps(cfg: DictConfig, data: TextData) -> int | None:
    """The bound in steps: `trainer.max_steps`, else `max_epochs` passes over the training data, else none."""
    if cfg.trainer.max_steps is not None:
        return int(cfg.trainer.max_steps)
    if cfg.trainer.max_epochs is None:
        return None
    return max(1, math.ceil(cfg.trainer.max_epochs * data.steps_per_epoch))


def budget_of(budget: Any, hardware: Hardware) -> Budget | None:
    """`auto` -> five minutes where no accelerator is, else no bound."""
    if budget == "auto":
        budget = "5m" if hardware.accelerator == "cpu" else None
    return None if budget is None else Budget.parse(budget)


# ---- the trainer -----------------------------------------------------------------------------------------------


def build_trainer(
    cfg: DictConfig,
    parts: Parts,
    run: RunFolder | None,
    resume_step: int | None = None,
    further: Sequence[Callback] = (),
) -> Trainer:
    """With `run=None` (a dry run) nothing is logged or saved. `further` callbacks come before those of the config."""
    task, hardware = parts.task, parts.hardware
    loggers = build_loggers(cfg, task, run, resume_step) if run else []
    where = Whereabouts()
    callbacks = [*further, *build_callbacks(cfg, parts, run, where)] if run else []
    rungs = [rung for callback in further if isinstance(callback, TrialReport) for rung in callback.rungs or ()]
    trainer = Trainer(
        accelerator=hardware.accelerator,
        strategy=strategy(hardware),
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        precision=hardware.precision,
        plugins=[AtomicCheckpointIO()],
        callbacks=[where, Pace(cfg.trainer.val_every, rungs), *callbacks],
        profiler=Unwatched(),
        logger=loggers or False,
        max_steps=-1,  # Pace ends the run: by steps and by time, with a last validation
        max_epochs=-1,
        accumulate_grad_batches=cfg.trainer.accumulate,
        log_every_n_steps=cfg.trainer.log_every,
        val_check_interval=NEVER,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the sampler cuts global batches itself
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=cfg.deterministic,
        inference_mode=False,
        default_root_dir=run.path if run else None,
    )
    # Lightning's own leave with status 0 and no checkpoint, and wait for other ranks inside a signal handler.
    trainer._signal_connector.register_signal_handlers = lambda: None
    for callback in trainer.callbacks:
        leave_out(callback)
    return trainer


def strategy(hardware: Hardware) -> Strategy | str:
    if hardware.strategy == "fsdp":
        return Sharding(hardware.world_size)
    if hardware.strategy == "ddp":
        backend = "nccl" if hardware.accelerator == "gpu" else "gloo"
        # Gradients lie where they are exchanged: no copy of them all, in time or memory.
        return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)
    return "auto"


def build_loggers(cfg: DictConfig, task: Task, run: RunFolder, resume_step: int | None) -> list[Logger]:
    nodes = {name: node for name, node in (cfg.get("logger") or {}).items() if node is not None}
    try:
        chosen = [make_with(node, save_dir=run.path, resume_step=resume_step) for node in nodes.values()]
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger={','.join(nodes)}: a package it needs is not installed; "
            f"pip install 'lit_tfm[{next(reversed(nodes))}]'"
        ) from error
    for name, logger in zip(nodes, chosen, strict=True):
        _keep_inside(logger, f"logger.{name}", run.path)
    return [MetricsCsv(run / "metrics.csv", task.progress, resume_step), *chosen]


def _keep_inside(logger: Logger, path: str, folder: Path) -> None:
    """Raises UserError for a logger that would write outside of the run, and remove what is in its way there.

    Lightning joins save_dir, name, version and sub_dir: an absolute one wins, and `$TOKEN` is read from the
    environment. So far nothing is written: a logger makes its folder with the first number.
    """
    module = type(logger).__module__
    if targets.trusted(module):
        return
    parts = {key: str(getattr(logger, key, None)) for key in ("name", "version", "sub_dir")}
    wrong = [f"{key}={value}" for key, value in parts.items() if "$" in value]
    if not wrong:
        places = [getattr(logger, key, None) for key in ("save_dir", "root_dir", "log_dir")]
        inside = folder.resolve()
        wrong = [str(place) for place in places if place and not Path(place).resolve().is_relative_to(inside)]
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]}: it would write outside of the run's folder; leave out what names its place, or, if "
            f"you trust it, type allow_targets={module}"
        )


def build_callbacks(cfg: DictConfig, parts: Parts, run: RunFolder, where: Whereabouts) -> list[Callback]:
    task = parts.task
    always: list[Callback] = [Preemption(parts.deadline)]
    if cfg.get("auto_batch"):
        always.append(AutoBatch(where))
    if limit := seconds(cfg.get("watchdog"), "watchdog"):
        always.append(Watchdog(where, limit, partial(tell_hang, run), partial(another_failed, run)))
    supplied = {
        "monitor": task.monitor,
        "mode": task.mode,
        "folder": str(run / "checkpoints"),
        "output_dir": str(run.path),
    }
    nodes = [node for node in (cfg.get("callbacks") or {}).values() if node is not None]
    chosen = [make_with(node, **supplied) for node in nodes]
    groups = {group: OmegaConf.to_container(cfg[group]) for group in HPARAM_GROUPS}
    chosen_yamls = OmegaConf.to_container(cfg.choices)
    # The loss stands beside the monitor, so that runs of different tasks share a column.
    metrics = list(dict.fromkeys([task.monitor, "val/loss"]))
    hparams = HParams({**groups, "seed": cfg.seed, "chosen": chosen_yamls}, metrics)
    record = Record(run.update_summary, task.monitor, task.mode)
    # Checkpoints last: what the others did at this step, such as moving an average on, is part of it.
    saving = [callback for callback in chosen if isinstance(callback, Checkpoints)]
    others = [callback for callback in chosen if callback not in saving]
    return [*always, record, *others, hparams, ProgressBar(), *saving]


def make_with(node: DictConfig, **known: Any) -> Any:
    """`make`, giving what the target's signature asks for of what build.py knows."""
    wanted = inspect.signature(targets.find(node._target_, node._get_full_key(""))).parameters
    return make(node, **{name: value for name, value in known.items() if name in wanted and name not in node})


# ---- weights and run folders -----------------------------------------------------------------------------------


def weights_file(source: Path) -> Path:
    """best.safetensors of a run folder, else last.safetensors; or the file itself."""
    if source.is_file():
        return source
    run = RunFolder.open(source)
    for name in ("best", "last"):
        if (found := run / "checkpoints" / f"{name}.safetensors").exists():
            return found
    raise UserError(f"{source}: the run has no weights yet (checkpoints/best.safetensors); train it first")


def load_weights(task: Task, source: Path) -> Transfer:
    """Start from another run's weights: what agrees in name and shape is taken over, the rest is listed.

    Raises UserError where nothing agrees, or where the tokenizers differ: the same id would be another word.
    """
    run = source if source.is_dir() else source.parent.parent
    tokenizer = run / "tokenizer.json"
    if tokenizer.exists() and Tokenizer.from_file(tokenizer).hash != task.facts.tokenizer.hash:
        raise UserError(f"init_from={source}: its tokenizer differs from this run's; type tokenizer.path={tokenizer}")
    try:
        old, new = load_file(weights_file(source)), task.state_dict()
    except (SafetensorError, OSError) as error:
        raise UserError(f"init_from={source}: no safetensors file that can be read ({error})") from error
    transfer = Transfer(source)
    for name in new:
        same_shape = name in old and old[name].shape == new[name].shape
        found = transfer.missing if name not in old else transfer.matched if same_shape else transfer.reshaped
        found.append(name)
    transfer.unused = [name for name in old if name not in new]
    if not transfer.matched:
        raise UserError(f"init_from={source}: none of its {len(old)} tensors fits this model; choose the same model=")
    task.load_state_dict({name: old[name] for name in transfer.matched}, strict=False)
    return transfer


def facts_of(run: RunFolder) -> DataFacts:
    """What the run's data said of itself, from the folder alone."""
    record = run.read_json("data.json")
    labels = record.get("labels")
    return DataFacts(
        tokenizer=Tokenizer.from_file(run / "tokenizer.json"),
        splits={name: SplitStats(**stats) for name, stats in record["splits"].items()},
        labels=tuple(labels) if labels else None,
        multi_label=record.get("multi_label", False),
    )


def load_task(run: RunFolder, checkpoint: str = "best") -> Task:
    """The trained task of a run folder, in eval mode, on the CPU."""
    task = build_task(run.config(), facts_of(run))
    file = run / "checkpoints" / f"{checkpoint}.safetensors"
    if not file.exists():
        raise UserError(f"{run.path}: no checkpoint '{checkpoint}'; type best or last, or train the run first")
    result = task.load_state_dict(load_file(file), strict=False)
    tied = set(result.missing_keys) - {name for name, _ in task.named_parameters()}
    if result.unexpected_keys or set(result.missing_keys) - tied:
        raise UserError(f"{file}: does not fit the run's config: {result}")
    return task.eval()


def data_record(data: TextData) -> dict[str, Any]:
    """data.json: what was used, and the facts a later verb needs to rebuild the task."""
    return {**data.records(), "multi_label": data.facts.multi_label}


def resume_checkpoint(path: Path, task: Task, forced: bool = False) -> int:
    """Check that the checkpoint belongs to this run's tokenizer and model, and count what it had done.

    Returns the optimizer step it was taken at. `forced` lets another tokenizer pass; weights of another shape never.
    """
    saved, shapes = head(path)
    if saved["lit_tfm"]["tokenizer"] != task.facts.tokenizer.hash and not forced:
        raise UserError(
            f"resume={path}: the checkpoint was trained with another tokenizer; "
            "type tokenizer.path=<its run>/tokenizer.json"
        )
    check_shapes(path, shapes, task)
    task.on_load_checkpoint(saved)  # whether it is finished may depend on its tokens and seconds
    return int(saved["global_step"])


def check_shapes(path: Path, saved: dict[str, torch.Size], task: Task) -> None:
    """Raises UserError where the checkpoint's weights are not those of this model, naming the first of them."""
    own = {name: value.shape for name, value in task.state_dict().items()}
    for name in [*own, *saved]:
        there, here = saved.get(name), own.get(name)
        if there != here:
            size = ["absent" if shape is None else list(shape) for shape in (there, here)]
            raise UserError(
                f"resume={path}: its weights do not fit this model ({name}: {size[0]} there, {size[1]} here); "
                f"type init_from={path.parent.parent} to take over those that fit"
            )
