"""One line while a run goes on: share done, loss, learning rate, tokens a second, time left, waiting for data."""

import sys
import time

from lightning import Callback, Trainer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lit_tfm.console import Console

REFRESH = 0.25  # seconds between two redraws: drawing costs more than a small model's step


class ProgressBar(Callback):
    """A rich bar in a terminal; elsewhere (a log file, CI) one plain line a validation."""

    def __init__(self) -> None:
        self.console = Console(stderr=False)
        self.live = sys.stdout.isatty()
        self.bar: Progress | None = None
        self._drawn = self._waited = 0.0
        self._batch_end: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        self._began, self._tokens_before = time.perf_counter(), pl_module.progress.tokens
        self._seconds_before = pl_module.progress.seconds
        if not (self.live and trainer.is_global_zero):
            return
        self.bar = Progress(
            TextColumn("{task.percentage:3.0f} %"),
            BarColumn(bar_width=10),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            auto_refresh=False,
        )
        self.bar.start()
        self.row = self.bar.add_task("", total=1.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx: int) -> None:
        if self._batch_end is not None:
            self._waited += time.perf_counter() - self._batch_end

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self._batch_end = now = time.perf_counter()
        if self.bar is None or now - self._drawn < REFRESH or not hasattr(pl_module, "last_loss"):
            return
        self._drawn = now
        done = pl_module.progress.fraction(trainer.global_step)
        self.bar.update(self.row, completed=done, description=self._text(trainer, pl_module), refresh=True)

    def _text(self, trainer: Trainer, task) -> str:
        progress = task.progress
        spent = max(progress.seconds - self._seconds_before, 1e-9)
        rate = (progress.tokens - self._tokens_before) / spent
        return (
            f"step {trainer.global_step} loss {float(task.last_loss):.4f} "
            f"lr {trainer.optimizers[0].param_groups[0]['lr']:.1e} {rate:,.0f} tokens/s "
            f"data wait {100 * self._waited / spent:.0f} %"
        )

    def on_validation_start(self, trainer: Trainer, pl_module) -> None:
        self._batch_end = None  # a validation is no waiting for data

    def on_validation_end(self, trainer: Trainer, pl_module) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        metrics = "  ".join(
            f"{name} {pl_module.measured[f'val/{name}']:.4f}"
            for name in pl_module.headline
            if f"val/{name}" in pl_module.measured
        )
        done = pl_module.progress.fraction(trainer.global_step)
        line = f"{100 * done:3.0f} % {self._text(trainer, pl_module)}  |  {metrics}"
        self.console.print(line, soft_wrap=True, highlight=False)  # a log keeps it on one line

    def on_train_end(self, trainer: Trainer, pl_module) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
