"""How a loss falls (or an accuracy rises) with training time: both sides measured by one function, outside the clock.

Training time is that of the steps with all that belongs to one (batches, forward, backward, optimizer, the framework's
own work); start-up and evaluation are not in it, on either side.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from lightning import Callback
from measure import Ratio

from lit_tfm.build import build_data, build_task
from lit_tfm.config import compose
from lit_tfm.tasks.base import Batch, Task
from lit_tfm.train import train


class Point(NamedTuple):
    step: int
    seconds: float  # of training, by the clock
    value: float
    cpu: float = 0.0  # seconds of training on the CPU, all threads together: other programs hardly change them


Curve = list[Point]


def reached(curve: Curve, target: float, rising: bool = False) -> Point | None:
    """The first point at least as good as the target."""
    return next((p for p in curve if (p.value >= target if rising else p.value <= target)), None)


def shares(ours: Sequence[Point], theirs: Sequence[Point]) -> str:
    """The ratio of the times, by the clock and of the CPU."""
    clock = Ratio.of([p.seconds for p in ours], [p.seconds for p in theirs])
    if not all(p.cpu for p in theirs):  # another process
        return f"{clock} by the clock"
    return f"{clock} by the clock, {Ratio.of([p.cpu for p in ours], [p.cpu for p in theirs])} in CPU seconds"


def told(name: str, seed: int, curve: Curve) -> Curve:
    """Say how a run ended: the others may take long."""
    end = curve[-1]
    times = f"{end.seconds:.1f} s ({end.cpu:.1f} s of the CPU)"
    print(f"{name}, seed {seed}: {end.value:.4f} after {end.step} steps, {times}", flush=True)
    return curve


class Stopwatch:
    """Seconds by the clock and of the CPU, while it runs."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def start(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._clock
        self.cpu += time.process_time() - self._cpu


class Watch(Callback):
    """Measures the task every so many steps and at the end, while the run's clock of training stands still."""

    def __init__(self, measure: Callable[[Task], float], every: int) -> None:
        self.measure, self.every = measure, every
        self.curve: Curve = []
        self.stopwatch = Stopwatch()

    def on_train_start(self, trainer, task: Task) -> None:
        self.stopwatch.start()

    def on_train_batch_end(self, trainer, task: Task, outputs, batch, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every and task.progress.fraction(step) < 1.0:
            return
        self.stopwatch.stop()
        with task.progress.paused():
            task.eval()
            self.curve.append(Point(step, task.progress.elapsed(), self.measure(task), self.stopwatch.cpu))
            task.train()
        self.stopwatch.start()


def train_ours(words: Sequence[str], measure: Callable[[Task], float], every: int) -> tuple[Curve, int]:
    """The product's own run, as typed with these words: the curve, and the number of parameters."""
    watch = Watch(measure, every)
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose([*words, f"output_dir={folder}/run", "trainer.val_every=0.9999"])  # once, at the end
        result = train(cfg, quiet=True, callbacks=[watch])
    return watch.curve, result.summary["parameters"]


def validation(words: Sequence[str]) -> tuple[list[Batch], "object"]:
    """The product's own validation batches of a run, and its data module."""
    cfg = compose(list(words))
    data = build_data(cfg)
    data.connect(build_task(cfg, data.facts).collator(), cfg.seed)
    return list(data.val_dataloader()), data


@torch.no_grad()
def mean(parts: Iterable[tuple[torch.Tensor, int]]) -> float:
    """Sums and counts -> the mean over all."""
    total = count = 0.0
    for part, number in parts:
        total, count = total + float(part), count + number
    return float(total / count)
