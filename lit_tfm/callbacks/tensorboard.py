"""TensorBoard made for looking: which names its pages show first, and one HParams table for many runs.

It sorts the groups of scalars by the alphabet, so the groups have words whose alphabetical order is that of importance:

    best        the monitored metric and the loss at the best validation so far; the columns runs are compared by
    loss        train, val
    metrics     whatever else validation measures
    optimizer   learning_rate, grad_norm
    speed       tokens_per_second ...
    test

metrics.csv and summary.json keep the metrics' own names (`val/loss`).
"""

import time
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from lit_tfm.callbacks.record import Record

TAGS = {
    "train/loss": "loss/train",
    "val/loss": "loss/val",
    "train/grad_norm": "optimizer/grad_norm",
    "train/learning_rate": "optimizer/learning_rate",
}
FLUSH = 10  # seconds until what is written can be seen; Lightning's default is two minutes


def tag(name: str) -> str:
    """A metric's name -> what TensorBoard calls it."""
    if name in TAGS:
        return TAGS[name]
    return f"metrics/{name.removeprefix('val/')}" if name.startswith("val/") else name


def best_tag(name: str) -> str:
    """`val/accuracy` -> the scalar that holds its value at the best validation so far."""
    return f"best/{name.removeprefix('val/')}"


def tensorboard(save_dir: Path, resume_step: int | None = None) -> "Board":
    """Events straight into the run folder, so that `tensorboard --logdir outputs` names runs as the folders are.

    A resumed run purges what an earlier part wrote beyond the step it goes on from: no point stands twice. Trap: with
    `--load_fast=false` TensorBoard takes the first such mark in a run for its start and purges nothing, so every run
    begins with one.
    """
    purge_step = 0 if resume_step is None else resume_step + 1
    return Board(save_dir, name="", version="", flush_secs=FLUSH, purge_step=purge_step)


class Board(TensorBoardLogger):
    """Lightning's logger with our names, and with hyper-parameters that go together with those of other runs."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics({tag(name): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], metrics=None, step=None) -> None:
        """Open the run's row of the HParams table.

        Not by SummaryWriter.add_hparams: that also declares an "experiment", and TensorBoard takes the columns of all
        runs from the first one it finds. Without any it gathers the columns from all runs, those that differ first.
        """
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in params.items():
            kind = "bool" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "string"
            setattr(start.hparams[name], f"{kind}_value", value if kind != "string" else str(value))
        self._write(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))

    @rank_zero_only
    def log_success(self) -> None:
        """Close the row. Only of a run that is finished: what is written first stays, and others may be resumed."""
        end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
        self._write(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))

    def _write(self, tag: str, content: HParamsPluginData) -> None:
        if of_a_trial(Path(self.log_dir)):
            return  # the sweep writes the row, with how the trial ended: search/tensorboard.py
        content.version = metadata.PLUGIN_DATA_VERSION
        plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
        value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
        # Lightning has closed the writer at the end of fit; this opens it again, as add_scalar does.
        self.experiment._get_file_writer().add_summary(Summary(value=[value]))

    @rank_zero_only
    def save(self) -> None:
        """Without Lightning's hparams.yaml: config.yaml says more."""
        if self._experiment is not None:
            self._experiment.flush()


class HParams(Callback):
    """One row of the HParams page: flat hyper-parameters, and the run's real metrics under `best/`.

    The metrics are those of the best validation so far, written after every one: a run that crashed shows what it had
    reached. Runs of different tasks share the columns they have in common.
    """

    def __init__(self, hyperparameters: dict[str, Any], metrics: list[str]) -> None:
        self.hyperparameters, self.metrics = flatten(hyperparameters), metrics

    def on_fit_start(self, trainer: Trainer, pl_module) -> None:
        for logger in boards(trainer):
            logger.log_hyperparams(self.hyperparameters)

    def on_validation_end(self, trainer: Trainer, pl_module) -> None:
        if trainer.state.fn != "fit":
            return
        best = next(callback.best for callback in trainer.callbacks if isinstance(callback, Record))
        values = {best_tag(name): best[name] for name in self.metrics if name in best}
        for logger in boards(trainer):
            logger.log_metrics(values, step=trainer.global_step)

    def finish(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        for logger in boards(trainer):
            if isinstance(logger, Board):
                logger.log_success()


def of_a_trial(folder: Path) -> bool:
    """Whether the run in `folder` is a trial of a sweep, or one of its seeds."""
    return any((place / "trial.json").exists() for place in (folder, folder.parent))


def boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"d_model": 4}} -> {"model/d_model": 4}; without None: it would turn a column of numbers into text."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (list, tuple)):
            flat[prefix + key] = " ".join(map(str, value))
        elif value is not None and not key.startswith("_"):
            flat[prefix + key] = value
    return flat
