"""Stopped from outside: the run ends between two optimizer steps, with a checkpoint, and says so by its exit status."""

import os
import signal
import time

from lightning import Callback, Trainer

from lit_tfm.callbacks.checkpoints import Checkpoints

PATIENCE = 2.0  # seconds; a terminal's Ctrl-C reaches a rank twice, by itself and through torchrun: that is one request
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # kill, Ctrl-C, SLURM's warning before the time limit


class Stopped(Exception):
    """The run was asked to stop and has saved where it is; `status` is that of a process ended by the signal."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}")
        self.status, self.step = 128 + number, step


class Preemption(Callback):
    """A first signal asks for a stop, a second one is obeyed at once.

    The handler only sets a flag: nothing can be saved in the middle of a step, and several ranks must agree. The task
    carries the flag in the sums that all ranks exchange at every optimizer step; all save and leave at the same one.
    """

    def __init__(self) -> None:
        self.number, self._asked = signal.SIGTERM, 0.0
        self._before: dict[int, object] = {}

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        try:
            # After Lightning's own, which would leave with status 0 and without a checkpoint.
            self._before = {n: signal.signal(n, lambda number, frame: self._ask(number, pl_module)) for n in SIGNALS}
        except ValueError:  # not the main thread: signals are somebody else's there
            self._before = {}

    def _ask(self, number: int, task) -> None:
        now = time.monotonic()
        if task.stop_wanted and now - self._asked > PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not task.stop_wanted:
            task.stop_wanted, self.number, self._asked = True, number, now

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx: int) -> None:
        # Here, and not at the end of the batch: a validation that was due has been done by now.
        if pl_module.stop_agreed and batch_idx % trainer.accumulate_grad_batches == 0:
            for callback in trainer.callbacks:
                if isinstance(callback, Checkpoints):
                    callback.save_last(trainer)
            raise Stopped(self.number, trainer.global_step)

    def teardown(self, trainer: Trainer, pl_module, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
