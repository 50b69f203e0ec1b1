"""A run that is a trial of a sweep: it reports at rungs and ends where the sweep's pruner says so."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning import Callback, Trainer

from lit_tfm.callbacks.pace import ROUNDING
from lit_tfm.errors import UserError


class TrialReport(Callback):
    """Reports `metric` at validations and asks whether the trial is to go on.

    `report(step, value)` -> True to prune. It is called on rank 0 only; the answer is broadcast, so all ranks end
    after the same optimizer step. `step` says how far the trial is in a number that all trials of the sweep have in
    common, whatever their batch sizes: the rung's share of the budget in tokens, FLOPs or milliseconds, or in
    thousandths of the run where no budget is set (tasks/budget.py). `value` may be NaN: then the pruner decides on NaN.

    `rungs` are shares of the run in (0, 1]; None: every validation is one. Of several rungs that one validation has
    passed only the last is reported. The end of the run is reported, if it is a rung, but nothing is asked there: what
    is trained to its end is complete.

    A rung is reported once, also by a trial that was killed and went on: rungs are kept in the checkpoint. Only a trial
    killed between a report and the checkpoint of the same validation reports that step again, with the same value;
    `report` has to take that as a mere question.
    """

    def __init__(
        self, report: Callable[[int, float], bool] | None, metric: str, rungs: Sequence[float] | None = None
    ) -> None:
        self.report, self.metric = report, metric
        self.rungs = sorted(rungs) if rungs is not None else None
        self.reported: int | None = None  # nominal step of the last rung
        self.pruned = False

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        # Killed after the answer had come, and started again.
        trainer.should_stop = trainer.should_stop or self.pruned

    def on_validation_end(self, trainer: Trainer, pl_module) -> None:
        if trainer.state.fn != "fit":
            return
        fraction = pl_module.progress.fraction(trainer.global_step)
        rung = self._rung(trainer, fraction)
        step = pl_module.progress.nominal(rung) if rung else 0
        if step <= (self.reported or 0):
            return
        self.reported = step
        answer = self.report(step, self._value(pl_module)) if trainer.is_global_zero else None
        if fraction < 1.0:
            self.pruned = bool(trainer.strategy.broadcast(answer))
            # Ends the run in order, with the checkpoint and the record of this validation.
            trainer.should_stop = trainer.should_stop or self.pruned

    def _rung(self, trainer: Trainer, fraction: float) -> float | None:
        """The share of the last rung that is passed; None before the first."""
        if self.rungs is not None:
            return max((rung for rung in self.rungs if rung <= fraction + ROUNDING), default=None)
        every = next(c.val_every for c in trainer.callbacks if hasattr(c, "val_every"))
        # A validation comes at the end of the step in which its share was passed; the share is the common number.
        return int(fraction / every + ROUNDING) * every if every < 1 and fraction < 1.0 else fraction

    def _value(self, task) -> float:
        known = {**task.measured, "train/loss": float(task.last_loss)}
        if self.metric not in known:
            raise UserError(f"metric={self.metric}: this run does not measure it; there is {', '.join(sorted(known))}")
        return known[self.metric]

    def state_dict(self) -> dict[str, Any]:
        return {"reported": self.reported, "pruned": self.pruned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reported, self.pruned = state["reported"], state["pruned"]
