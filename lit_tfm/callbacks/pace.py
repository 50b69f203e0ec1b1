"""When a run validates, and when it ends: both read progress only, so a budget in minutes works as steps do."""

from bisect import bisect_right
from collections.abc import Iterable

from lightning import Callback, Trainer

NEVER = 10**12  # batches; Lightning's own validation schedule is switched off with it
ROUNDING = 1e-9  # of a share


class Pace(Callback):
    """Asks for a validation every `val_every` (a share of the run below 1, optimizer steps from 1 on) and at the end.

    `rungs` are further shares of the run to validate at: those at which a trial's sweep may end it.

    Lightning counts batches and epochs, which a resume in the middle of an epoch gets wrong (several open issues
    upstream). Here one endless epoch is trained and only the optimizer step and the seconds used count.
    """

    def __init__(self, val_every: float, rungs: Iterable[float] = ()) -> None:
        self.val_every, self.rungs = val_every, sorted(rungs)
        self._done = (0, 0)  # shares and rungs passed

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            trainer.val_check_batch = NEVER  # in the middle of an optimizer step
            return
        fraction = pl_module.progress.fraction(trainer.global_step)
        trainer.val_check_batch = 1 if self._due(trainer.global_step, fraction) else NEVER
        if fraction >= 1.0:
            trainer.should_stop = True  # Lightning validates once more, then ends

    def _due(self, step: int, fraction: float) -> bool:
        passed, before = self._passed(fraction), self._done
        self._done = passed
        return passed > before or (self.val_every >= 1 and step % int(self.val_every) == 0)

    def _passed(self, fraction: float) -> tuple[int, int]:
        """How many validations of a run paced by share, and how many rungs, lie behind."""
        shares = int(fraction / self.val_every + ROUNDING) if self.val_every < 1 else 0
        return shares, bisect_right(self.rungs, fraction + ROUNDING)

    def on_validation_start(self, trainer: Trainer, pl_module) -> None:
        pl_module.progress.stop()

    def on_validation_end(self, trainer: Trainer, pl_module) -> None:
        if trainer.state.fn == "fit":
            pl_module.progress.start()

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        # From the step alone, not from the checkpoint: a run that is made longer has other shares.
        fraction = pl_module.progress.fraction(trainer.global_step)
        self._done = self._passed(fraction)
        trainer.should_stop = trainer.should_stop or fraction >= 1.0  # killed between the last step and its own end
        pl_module.progress.start()

    def on_train_end(self, trainer: Trainer, pl_module) -> None:
        pl_module.progress.stop()
