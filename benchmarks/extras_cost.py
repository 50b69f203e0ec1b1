"""What a run does beside training, as a share of its time: validations, checkpoints, pictures, texts.

    OMP_NUM_THREADS=1 python benchmarks/extras_cost.py data.path=../shared/data/tinyshakespeare

A run validates every 100 steps, with every callback of the defaults. Each part is timed where it is called; its share
is of all the seconds of training and the parts together. Of a validation the model's own work is told apart from what
surrounds it: reading, summing, logging, and the change between training and evaluation.
"""

import argparse
import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Callback
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from measure import circumstances, publish, table

from lit_tfm import config
from lit_tfm.callbacks.attention import AttentionMaps
from lit_tfm.callbacks.checkpoints import Checkpoints
from lit_tfm.callbacks.confusion import ConfusionPicture
from lit_tfm.callbacks.projector import Projector
from lit_tfm.callbacks.samples import Samples
from lit_tfm.tasks.base import Task
from lit_tfm.train import train

GOAL = 0.01
SIZES = {
    "1 M": ["model.d_model=144", "model.n_layers=4", "model.n_heads=4"],
    "10 M": ["model.d_model=384", "model.n_layers=6", "model.n_heads=6"],
}
# Name of a part -> what is timed. What is called inside of another counts for the inner one alone.
PARTS = {
    "validation: the model": (Task, "validation_step"),
    "validation: around it": (_EvaluationLoop, "run"),
    "checkpoints": (Checkpoints, "on_validation_end"),
    "pictures: attention": (AttentionMaps, "on_validation_end"),
    "pictures: confusion": (ConfusionPicture, "on_validation_end"),
    "projector": (Projector, "on_validation_end"),
    "texts": (Samples, "on_validation_end"),
}


class Watch:
    """Seconds by part, each without those of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took, inner = time.perf_counter() - began, self._inner.pop()
            self._inner[-1] += took
            self.seconds[name] += took - inner
            self.calls[name] += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, every part of PARTS is timed."""
        plain = {name: getattr(kind, method) for name, (kind, method) in PARTS.items()}
        for name, (kind, method) in PARTS.items():
            setattr(kind, method, self._timed(name, plain[name]))
        try:
            yield
        finally:
            for name, (kind, method) in PARTS.items():
                setattr(kind, method, plain[name])

    def _timed(self, name: str, method):
        @functools.wraps(method)
        def call(*args, **kwargs):
            with self.part(name):
                return method(*args, **kwargs)

        return call


class Whole(Callback):
    """The seconds of a run's training with all that it does beside, and of training alone."""

    def on_train_start(self, *_: object) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, trainer, pl_module) -> None:
        self.seconds, self.training = time.perf_counter() - self.began, pl_module.progress.elapsed()


def measure(size: str, options: argparse.Namespace) -> tuple[Watch, Whole]:
    watch, whole = Watch(), Whole()
    run = [f"trainer.max_steps={options.validations * options.every}", f"trainer.val_every={options.every}"]
    with tempfile.TemporaryDirectory() as folder:
        run += ["experiment=char_gpt", "budget=null", f"data.val_limit={options.blocks}", f"output_dir={folder}/run"]
        cfg = config.compose([*run, *SIZES[size], *options.words])
        with watch.watching():
            train(cfg, quiet=True, callbacks=[whole])
    return watch, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--every", type=int, default=100, help="steps between two validations")
    parser.add_argument("--validations", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=64, help="of a validation")
    parser.add_argument("--quick", action="store_true", help="five validations of the smaller model")
    parser.add_argument("--dry", action="store_true", help="print the table only")
    parser.add_argument("words", nargs="*", help="as on the command line of train, e.g. data.path=...")
    options = parser.parse_args()
    if options.quick:
        options.size, options.validations = options.size[:1], min(options.validations, 5)
    lines = [circumstances("lightning"), f"{options.validations} validations of {options.blocks} blocks."]
    for size in options.size:
        watch, whole = measure(size, options)
        rows = [
            [name, watch.calls[name], f"{1000 * watch.seconds[name] / max(1, watch.calls[name]):.0f} ms",
             f"{watch.seconds[name] / whole.seconds:.2%}", "" if name == "validation: the model" else f"{GOAL:.0%}"]
            for name in PARTS
        ]  # fmt: skip
        steps = options.validations * options.every
        lines.append(f"{size} parameters, {steps} steps of {1000 * whole.training / steps:.1f} ms:")
        lines.append(table(["part", "calls", "each", "share of the time", "goal"], rows))
    publish("extras_cost", "\n\n".join(lines), options.dry)


if __name__ == "__main__":
    main()
