"""What the framework costs a training step: our trainer as it is, against a short loop around the same model.

    OMP_NUM_THREADS=1 python benchmarks/framework_cost.py data.path=../shared/data/tinyshakespeare

The run is that of `train(cfg)` with its default callbacks and loggers. Between bursts of its steps the bare loop takes
as many with its own copy of model and optimizer on batches of the same text, so a machine that grows slower slows both.
Steps that log are among those measured; validations and checkpoints are not (benchmarks/extras_cost.py).
"""

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning import Callback
from measure import Ratio, circumstances, publish, table
from omegaconf import DictConfig

from lit_tfm import config
from lit_tfm import hardware as machines
from lit_tfm.build import build
from lit_tfm.models.cost import parameters
from lit_tfm.train import train

SIZES = {
    "1 M": [
        "model.d_model=144",
        "model.n_layers=4",
        "model.n_heads=4",
        "model.value_embeddings=false",
        "model.neighbours=0",
    ],
    "10 M": [
        "model.d_model=384",
        "model.n_layers=6",
        "model.n_heads=6",
        "model.value_embeddings=false",
        "model.neighbours=0",
    ],
}
PLAIN = ["model.value_embeddings=false", "model.neighbours=0"]
GOALS = {"1 M": 1.03, "10 M": 1.01}
BATCH = 12  # blocks of 64 characters: the CPU example of nanoGPT


class Seconds(NamedTuple):
    """By the clock, and by the processor's time of this process, which leaves out what other programs took."""

    clock: float
    processor: float

    @classmethod
    def now(cls) -> "Seconds":
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: "Seconds", steps: int) -> "Seconds":
        return Seconds(*((now - then) / steps for now, then in zip(self, began, strict=True)))


class Bare:
    """Model, loss, clipping, optimizer, schedule, and no trainer. Reads its loss every tenth step, as ours does."""

    def __init__(self, cfg: DictConfig) -> None:
        parts = build(cfg, machines.choose(cfg.trainer))
        self.model, self.head = parts.task.model.train(), parts.task.head.train()
        self.optimizer, self.schedule = parts.task.configure_optimizers(), parts.task.schedule
        self.weights = list(parts.task.parameters())
        self.tokens, self.block = np.asarray(parts.data.stores["train"].tokens), parts.data.block_size
        self.steps, self.step = cfg.trainer.max_steps, 0

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        starts = np.random.randint(len(self.tokens) - self.block - 1, size=BATCH)
        rows = self.tokens[starts[:, None] + np.arange(self.block + 1)].astype(np.int64)
        return torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])

    def __call__(self, steps: int) -> "Seconds":
        """A step's."""
        began = Seconds.now()
        for _ in range(steps):
            inputs, labels = self.batch()
            _, loss = self.head.losses(self.model.hidden(inputs).flatten(0, 1), labels.flatten())
            loss = loss / labels.numel()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.schedule(self.step / self.steps)
            self.optimizer.step()
            self.step += 1
            if self.step % 10 == 0:
                loss.item()
        return Seconds.now().since(began, steps)


class Bursts(Callback):
    """A step of the run it hangs on, from one burst to the next, and one of `other` in between."""

    def __init__(self, other: Callable[[int], Seconds], steps: int, warm_up: int = 2) -> None:
        self.other, self.steps, self.warm_up = other, steps, warm_up
        self.ours: list[Seconds] = []
        self.theirs: list[Seconds] = []
        self._began: Seconds | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if trainer.global_step % self.steps:
            return
        if self._began is not None:
            self.ours.append(Seconds.now().since(self._began, self.steps))
        theirs = self.other(self.steps)
        if self._began is not None:
            self.theirs.append(theirs)
        self._began = Seconds.now()

    def figures(self) -> tuple[list[Seconds], list[Seconds]]:
        return self.ours[self.warm_up :], self.theirs[self.warm_up :]


def compose(size: str, optimizer: str, steps: int, folder: Path, words: list[str]) -> DictConfig:
    run = [f"optimizer={optimizer}", f"trainer.max_steps={steps}", "trainer.val_every=1000000", "budget=null"]
    data = [f"data.batch_size={BATCH}", "data.block_size=64", "data.val_limit=2", f"output_dir={folder}"]
    kind = ["model=char_gpt", "task=causal_lm", "data=tinyshakespeare", "tokenizer=char", *PLAIN]
    return config.compose([*kind, *SIZES[size], *run, *data, *words])


def measure(size: str, options: argparse.Namespace, folder: Path) -> tuple[int, list[Seconds], list[Seconds]]:
    """Parameters, and the step of each burst: ours, the bare loop's."""
    steps = options.steps * (options.bursts + 3)
    cfg = compose(size, options.optimizer, steps, folder, options.words)
    bare = Bare(cfg)
    bursts = Bursts(bare, options.steps)
    train(cfg, quiet=True, callbacks=[bursts])
    return parameters(bare.model) + parameters(bare.head), *bursts.figures()


def profile(size: str, options: argparse.Namespace, folder: Path) -> None:
    """Where our steps spend their Python time."""
    cfg = compose(size, options.optimizer, options.profile, folder, options.words)
    with cProfile.Profile() as watched:
        train(cfg, quiet=True)
    pstats.Stats(watched).sort_stats("tottime").print_stats(60)


def compared(ours: list[Seconds], bare: list[Seconds]) -> list[object]:
    """Cells: the bare step, what the framework adds to it, and both ratios with their range over the bursts."""
    clock, processor = (Ratio.of([o[kind] for o in ours], [b[kind] for b in bare]) for kind in (0, 1))
    step, whole = (1000 * np.median([seconds.processor for seconds in of]) for of in (bare, ours))
    return [f"{step:.1f} ms", f"{whole - step:+.2f} ms", clock, processor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--bursts", type=int, default=40, help="of each size")
    parser.add_argument("--steps", type=int, default=20, help="of a burst; a multiple of 10, so that each one logs")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--quick", action="store_true", help="a dozen bursts")
    parser.add_argument("--profile", type=int, metavar="STEPS", help="no table: where the Python time goes")
    parser.add_argument("--dry", action="store_true", help="print the table only")
    parser.add_argument("words", nargs="*", help="as on the command line of train, e.g. data.path=...")
    options = parser.parse_args()
    if options.quick:
        options.bursts = min(options.bursts, 12)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.size:
            if options.profile:
                profile(size, options, Path(folder, size))
                continue
            count, ours, bare = measure(size, options, Path(folder, size))
            rows.append([f"{count / 1e6:.2f} M", *compared(ours, bare), GOALS[size]])
    if rows:
        head = ["parameters", "bare step", "framework", "ours / bare by the clock", "by the processor's time", "goal"]
        lines = [f"{options.optimizer}, {options.bursts} bursts of {options.steps} steps, {BATCH} x 64 tokens a step."]
        publish("framework_cost", "\n\n".join([circumstances("lightning"), *lines, table(head, rows)]), options.dry)


if __name__ == "__main__":
    main()
