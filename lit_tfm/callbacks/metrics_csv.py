"""metrics.csv of the run folder: one line a number, appended at once: a killed run keeps what it measured."""

import csv
import os
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_tfm.callbacks.replacing import sync
from lit_tfm.tasks.progress import Progress

COLUMNS = ("step", "seconds", "tokens", "name", "value")


class MetricsCsv(Logger):
    """Long format: `pandas.read_csv(path).pivot(index="step", columns="name", values="value")` makes it wide.

    Lightning's CSVLogger deletes the file of an earlier part of the run; this one cuts it off at the step the run
    resumes from and goes on.
    """

    def __init__(self, path: Path, progress: Progress, resume_step: int | None = None) -> None:
        super().__init__()
        self.path, self.progress, self.resume_step = path, progress, resume_step

    name = "csv"
    version = ""

    def _cut(self) -> None:
        """Once, and not before the run really goes on: killed while it starts, it is what it was."""
        step, self.resume_step = self.resume_step, None
        if step is None or not self.path.exists():
            return
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
            whole = (line for line in file if "\0" not in line)  # a power cut leaves such lines
            rows = [row for row in csv.reader(whole) if len(row) == len(COLUMNS) and row[0].isdigit()]
        kept = [row for row in rows if int(row[0]) <= step]
        temporary = self.path.with_name(f".{self.path.name}.partial")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *kept])
        sync(temporary)
        os.replace(temporary, self.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._cut()
        before = self.path.stat().st_size if self.path.exists() else 0
        seconds, tokens = f"{self.progress.seconds:.3f}", self.progress.tokens
        rows = [[step, seconds, tokens, name, float(value)] for name, value in metrics.items()]
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows if before else [COLUMNS, *rows])
        except OSError:
            with suppress(OSError):  # no half row where the disk was full
                os.truncate(self.path, before)
            raise

    @rank_zero_only
    def save(self) -> None:
        """Called before every checkpoint: after a power cut no row is missing that comes before it."""
        self._cut()
        if self.path.exists():
            sync(self.path)

    def log_hyperparams(self, *args, **kwargs) -> None:
        """They stand in config.yaml."""
