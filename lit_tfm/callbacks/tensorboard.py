"""TensorBoard: scalars beside the run's other files, and HParams with real metrics."""

import math
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def tensorboard(save_dir: Path, resume_step: int | None = None) -> TensorBoardLogger:
    """Events straight into the run folder, so that `tensorboard --logdir outputs` names runs as the folders are.

    A resumed run purges what an earlier part wrote beyond the step it goes on from: no point stands twice.
    """
    purge = {} if resume_step is None else {"purge_step": resume_step + 1}
    return TensorBoardLogger(save_dir, name="", version="", default_hp_metric=False, **purge)


class HParams(Callback):
    """One row of the HParams page: flat hyper-parameters, and the run's real metrics under `hp/`.

    The row is opened with NaN at the start, so that a crashed run shows as well; the value follows at the end. Metrics
    must be named at the first call: TensorBoard ignores those declared later.
    """

    def __init__(self, hyperparameters: dict[str, Any], metrics: list[str]) -> None:
        self.hyperparameters, self.metrics = flatten(hyperparameters), metrics

    def on_fit_start(self, trainer: Trainer, pl_module) -> None:
        if trainer.is_global_zero:
            for logger in boards(trainer):
                logger.log_hyperparams(self.hyperparameters, {f"hp/{name}": math.nan for name in self.metrics})

    def finish(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        values = {f"hp/{name}": metrics[name] for name in self.metrics if name in metrics}
        for logger in boards(trainer):
            logger.log_metrics(values, step=trainer.global_step)


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
