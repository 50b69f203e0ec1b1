"""Stopped from outside: the run ends between two optimizer steps, with a checkpoint, and says so by its exit status."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning import Callback, Trainer

from lit_tfm.callbacks.checkpoints import Checkpoints
from lit_tfm.errors import TIME_IS_UP

PATIENCE = 2.0  # seconds; a terminal's Ctrl-C reaches a rank twice, by itself and through torchrun: that is one request
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # kill, Ctrl-C, SLURM's warning before the time limit


class Stopped(BaseException):
    """The run was asked to stop: by a signal (then `status` is that of a process ended by it) or by its time limit.

    Like KeyboardInterrupt no Exception: nothing on the way is to take it for a failure.
    """

    def __init__(self, status: int, where: str) -> None:
        by = "time_limit" if status == TIME_IS_UP else signal.Signals(status - 128).name
        super().__init__(f"stopped by {by} {where}")
        self.status = status


@contextmanager
def leaving_at_once():
    """Where nothing is trained there is nothing to save: a signal raises Stopped, and what is half-made is cleared up.

    A second one ends the process. Without effect outside of the main thread, where signals are somebody else's.
    """

    def leave(number: int, frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(128 + number, "outside of training")

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, leave) for number in SIGNALS} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Preemption(Callback):
    """A first signal asks for a stop, a second one is obeyed at once; past `deadline` (of time.time) the run asks.

    The handler only sets a flag: nothing can be saved in the middle of a step, and several ranks must agree. The task
    carries the flag in the sums that all ranks exchange at every optimizer step; all save and leave at the same one.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline, self.status, self._asked = deadline, 0, 0.0
        self._before: dict[int, object] = {}

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        # Before every batch Lightning asks all ranks whether one was stopped, and waits for the answer. The handlers
        # below have taken its own one's place, so it could only ever be no.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, lambda number, frame: self._ask(number, pl_module)) for n in SIGNALS}

    def _ask(self, number: int, task) -> None:
        now = time.monotonic()
        if task.stop_wanted and now - self._asked > PATIENCE and self.status != TIME_IS_UP:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not task.stop_wanted or self.status == TIME_IS_UP:
            task.stop_wanted, self.status, self._asked = True, 128 + number, now

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if self.deadline is not None and not pl_module.stop_wanted and time.time() > self.deadline:
            pl_module.stop_wanted, self.status = True, TIME_IS_UP

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx: int) -> None:
        # Here, and not at the end of the batch: a validation that was due has been done by now.
        if pl_module.stop_agreed and batch_idx % trainer.accumulate_grad_batches == 0:
            for callback in trainer.callbacks:
                if isinstance(callback, Checkpoints):
                    callback.save_last(trainer)
            raise Stopped(self._agreed(pl_module.device), f"at step {trainer.global_step}")

    def _agreed(self, device: torch.device) -> int:
        """One status for all ranks, of which some may have heard nothing."""
        status = torch.tensor(self.status, device=device)
        if dist.is_initialized():
            dist.all_reduce(status, dist.ReduceOp.MAX)
        return int(status)

    def on_exception(self, trainer: Trainer, pl_module, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
