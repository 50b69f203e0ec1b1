"""Moments of a run at which something ends it."""

import os
import resource
import signal
import time
from pathlib import Path

from lightning import Callback


class Crash(Exception):
    """Power loss, as far as Python can tell: nothing is saved after it."""


class Interrupt(Callback):
    """At one moment of the run: a signal to this very process, an exception, SIGKILL, or a full disk for rank 0.

    `moment`: step@N after the N-th optimizer step, batch@N before and micro@N after the N-th micro-batch, validation@N
    in the N-th validation batch counted from the step, save@N when the checkpoint of step N is about to be written.
    """

    def __init__(self, moment: str, end: str) -> None:
        self.place, self.number = moment.split("@")
        self.end = end  # signal | crash | kill | full

    def strike(self, place: str, number: int) -> None:
        if place != self.place or number != int(self.number):
            return
        self.number = -1
        if self.end == "crash":
            raise Crash
        if self.end == "full":
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, most))  # room for what a captured rank has to say
            return
        os.kill(os.getpid(), signal.SIGKILL if self.end == "kill" else signal.SIGTERM)

    def on_train_batch_start(self, trainer, task, batch, batch_idx) -> None:
        self.strike("batch", batch_idx + 1)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        self.strike("micro", batch_idx + 1)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.strike("step", trainer.global_step)

    def on_validation_batch_start(self, trainer, task, batch, batch_idx, dataloader_idx=0) -> None:
        self.strike("validation", trainer.global_step + batch_idx)

    def on_save_checkpoint(self, trainer, task, checkpoint) -> None:
        if self.end != "full" or trainer.is_global_zero:
            self.strike("save", trainer.global_step)


def next_second(target: Path) -> None:
    """TensorBoard orders event files by name: the second, the process, and a count as text, where 10 is before 9.

    Only a test resumes in the same process and second.
    """
    newest = max((int(path.name.split(".")[3]) for path in target.glob("events.out.tfevents.*")), default=0)
    while int(time.time()) <= newest:
        time.sleep(0.02)
