"""Keeps summary.json true while a run goes on, so that a killed one still says how far it came."""

from collections.abc import Callable
from typing import Any

from lightning import Callback, Trainer


class Record(Callback):
    """Writes steps, tokens, seconds, last and best metrics at every validation.

    `write(**values)` replaces keys of the summary. Best is by the task's monitor: all metrics of that validation, so
    that the figures of one row belong to one model.
    """

    def __init__(self, write: Callable[..., None], monitor: str, mode: str) -> None:
        self.write, self.monitor, self.sign = write, monitor, (1 if mode == "min" else -1)
        self.metrics: dict[str, float] = {}
        self.best: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module) -> None:
        if trainer.state.fn != "fit":
            return
        self.metrics = {**pl_module.measured, "train/loss": float(pl_module.last_loss)}
        value = self.metrics.get(self.monitor)
        if value is not None and (not self.best or self.sign * value < self.sign * self.best[self.monitor]):
            self.best = {**self.metrics, "step": trainer.global_step}
        if trainer.is_global_zero:
            self.write(**self.values(trainer, pl_module))

    def values(self, trainer: Trainer, task) -> dict[str, Any]:
        progress = task.progress
        return {
            "steps": trainer.global_step,
            "tokens": progress.tokens,
            "skipped_steps": progress.skipped,
            "seconds": round(progress.seconds, 3),
            "metrics": self.metrics,
            "best": self.best,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metrics, self.best = state["metrics"], state["best"]
