"""How fast a run trains: tokens a second, the share spent waiting for data, TFLOP/s, and utilisation of the device."""

from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lit_tfm.callbacks.peaks import peak


class Throughput(Callback):
    """Logs, every `trainer.log_every_n_steps`, over the steps since the last time:

    speed/tokens_per_second   of all ranks, taking the others to be like this one
    speed/step_seconds        median of one optimizer step
    speed/data_wait           share of the time between two steps' work: loading, and moving to the device
    speed/tflops              TFLOP/s of one device, where the task knows its FLOPs per token
    speed/mfu                 those against the device's dense bf16 peak, where that is known

    Validation and checkpoints do not count, nor does the first step of a fit (compilation, first allocations).
    Nothing here waits for the device: its queue is short beside a window of steps.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}  # what was logged last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._first = trainer.global_step, trainer.global_step
        self._peak = peak(trainer.strategy.root_device)
        self._ended: float | None = None  # end of the previous batch, None where something else came between
        self._open_window()

    def _open_window(self) -> None:
        self._waited = self._worked = self._this_step = 0.0
        self._tokens = 0
        self._steps: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch: Any, batch_idx: int) -> None:
        self._began = perf_counter()
        self._wait = 0.0 if self._ended is None else self._began - self._ended

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch: Any, batch_idx: int) -> None:
        self._ended = now = perf_counter()
        self._waited += self._wait
        self._worked += now - self._began
        self._this_step += self._wait + now - self._began
        self._tokens += _tokens(batch)
        if trainer.global_step == self._step:  # a micro-batch of an accumulated step
            return
        self._step = trainer.global_step
        self._steps.append(self._this_step)
        self._this_step = 0.0
        if self._step == self._first + 1:
            self._open_window()
        elif self._step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module)
            self._open_window()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._ended = None

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self._waited + self._worked
        rate = self._tokens / seconds
        self.latest = {"speed/step_seconds": median(self._steps), "speed/data_wait": self._waited / seconds}
        if self._tokens:
            self.latest["speed/tokens_per_second"] = rate * trainer.world_size
        flops = getattr(pl_module, "flops_per_token", None)
        if self._tokens and flops:
            self.latest["speed/tflops"] = rate * flops / 1e12
            if self._peak:
                self.latest["speed/mfu"] = rate * flops / self._peak
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=trainer.global_step)


def _tokens(batch: Any) -> int:
    """Counted by the collator, on the CPU; else every position, since looking at a mask would wait for the device."""
    if not isinstance(batch, Mapping):
        return 0
    if isinstance(batch.get("n_tokens"), int):
        return batch["n_tokens"]
    return batch["input_ids"].numel() if "input_ids" in batch else 0
