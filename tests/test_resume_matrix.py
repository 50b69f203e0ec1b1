"""A run that was interrupted and resumed ends with the bits of one that was not: the matrix of moments and recipes.

Weights, optimizer state, moving averages, metrics.csv and TensorBoard's curves are compared without a tolerance; only
what is measured by a clock may differ. docs/reliability.md holds the table. The first of each recipe's moments runs in
`make test`, all of them in `make soak`.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_tfm import config
from lit_tfm.train import train

TINY = [
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.dropout=0.2",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
    "trainer.max_steps=9",
    "trainer.val_every=3",
    "budget=null",
    "seed=3",
    "callbacks=[default,ema]",
    "++callbacks.checkpoints.every=2",
]
BLOCKS = ["data.block_size=32", "data.batch_size=6", "data.val_limit=9", "tokenizer.vocab_size=300"]
ROWS = ["data.batch_size=40", "test=false"]  # 216 rows to learn from: an epoch is 6 steps
RECIPES = {
    "packed causal LM, Muon": ["experiment=gpt_small", *BLOCKS],
    "masked LM, AdamW": ["experiment=bert_small", "optimizer=adamw", *BLOCKS],
    "span corruption, Adafactor": ["experiment=t5_small", "optimizer=adafactor", *BLOCKS],
    "bucketed classification, Lion": ["experiment=emotion_bert", "data=csv", "optimizer=lion", *ROWS],
}
VARIANTS = {
    "plain": [],
    "accumulation": ["trainer.accumulate=3"],
    "two loader workers": ["data.num_workers=2"],
}


class Crash(Exception):
    """Power loss, as far as Python can tell: nothing is saved after it."""


class Interrupt(Callback):
    """At one moment of the run: a signal to this very process, or a crash."""

    def __init__(self, moment: str, crash: bool) -> None:
        self.place, self.number = moment.split("@")
        self.crash = crash
        self.validations = 0

    def strike(self, place: str, number: int) -> None:
        if place != self.place or number != int(self.number):
            return
        self.number = -1
        if self.crash:
            raise Crash
        os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        self.strike("micro", batch_idx + 1)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.strike("step", trainer.global_step)

    def on_validation_batch_start(self, trainer, task, batch, batch_idx, dataloader_idx=0) -> None:
        self.strike("validation", trainer.global_step + batch_idx)


MOMENTS = ["step@1", "step@4", "step@6", "validation@3", "micro@5", "step@7"]


def cases() -> Iterator[Any]:
    """(recipe, variant, moment, crash); those for `make test` are picked so that every word occurs."""
    quick = {
        ("packed causal LM, Muon", "accumulation", "micro@5", False),
        ("masked LM, AdamW", "plain", "validation@3", False),
        ("span corruption, Adafactor", "plain", "step@4", True),
        ("bucketed classification, Lion", "plain", "step@6", False),  # 240 rows: the end of an epoch
        ("masked LM, AdamW", "two loader workers", "step@4", False),
        ("packed causal LM, Muon", "plain", "validation@3", True),
        ("masked LM, AdamW", "plain", "step@1", True),
    }
    for recipe in RECIPES:
        for variant in VARIANTS:
            for moment in MOMENTS:
                for crash in (False, True):
                    case = (recipe, variant, moment, crash)
                    marks = [] if case in quick else [pytest.mark.slow]
                    name = f"{recipe}-{variant}-{'crash' if crash else 'signal'}-{moment}"
                    yield pytest.param(*case, marks=marks, id=name)


@pytest.fixture(scope="session")
def matrix(tmp_path_factory, session_cache, text_folder, labelled_csv):
    """`start(folder, recipe, variant, *more, callbacks=)`, and each recipe's uninterrupted run, made once."""
    folder, whole = tmp_path_factory.mktemp("matrix"), {}

    def options(recipe: str, variant: str) -> list[str]:
        data = labelled_csv if "classification" in recipe else text_folder
        given = [*RECIPES[recipe], *TINY, *VARIANTS[variant]]
        return [*given, f"data.path={data}", f"cache_dir={session_cache}"]

    def start(target: Path, recipe: str, variant: str, *more: str, callbacks=()) -> Path:
        train(
            config.compose([*options(recipe, variant), f"output_dir={target}", *more]), quiet=True, callbacks=callbacks
        )
        return target

    def uninterrupted(recipe: str, variant: str, *more: str) -> Path:
        key = (recipe, variant, *more)
        if key not in whole:
            whole[key] = start(folder / str(len(whole)), recipe, variant, *more)
        return whole[key]

    start.uninterrupted = uninterrupted
    return start


def interrupt(start, target: Path, recipe: str, variant: str, moment: str, crash: bool) -> None:
    with pytest.raises((SystemExit, Crash)) as ended:
        start(target, recipe, variant, callbacks=[Interrupt(moment, crash)])
    if not crash:
        assert ended.value.code == 143


def go_on(target: Path, *more: str) -> None:
    next_second(target)
    assert train(config.compose([f"resume={target}", *more]), quiet=True).status == "finished"


def next_second(target: Path) -> None:
    """TensorBoard orders event files by name: the second, the process, and a count as text, where 10 is before 9.

    Only a test resumes in the same process and second.
    """
    newest = max(int(path.name.split(".")[3]) for path in target.glob("events.out.tfevents.*"))
    while int(time.time()) <= newest:
        time.sleep(0.02)


@pytest.mark.parametrize(("recipe", "variant", "moment", "crash"), cases())
def test_resumed_as_if_nothing_had_been(matrix, tmp_path, recipe, variant, moment, crash) -> None:
    target = tmp_path / "run"
    interrupt(matrix, target, recipe, variant, moment, crash)
    if any((target / "checkpoints").glob("*.ckpt")):
        go_on(target)
    else:  # killed before the first one: the same command starts the run again
        assert crash
        matrix(target, recipe, variant, "resume=auto")
    assert_identical(matrix.uninterrupted(recipe, variant), target)


def test_resumed_twice_in_a_row(matrix, tmp_path) -> None:
    recipe, variant, target = "masked LM, AdamW", "accumulation", tmp_path / "run"
    interrupt(matrix, target, recipe, variant, "micro@4", False)
    next_second(target)
    with pytest.raises(SystemExit):
        train(config.compose([f"resume={target}"]), quiet=True, callbacks=[Interrupt("step@5", False)])
    go_on(target)
    assert_identical(matrix.uninterrupted(recipe, variant), target)


@pytest.mark.parametrize("recipe", ["packed causal LM, Muon", "bucketed classification, Lion"])
def test_ended_at_max_steps_and_then_extended(matrix, tmp_path, recipe) -> None:
    """With a constant schedule: any other is another one for a longer run."""
    target = tmp_path / "run"
    matrix(target, recipe, "plain", "schedule=constant", "trainer.max_steps=5")
    go_on(target, "trainer.max_steps=9")
    expected = matrix.uninterrupted(recipe, "plain", "schedule=constant")
    # The shorter run measured itself once more, where it ended.
    assert_identical(expected, target, but_for_step=5)


# ---- what is compared -----------------------------------------------------------------------------------------


def assert_identical(expected: Path, found: Path, but_for_step: int | None = None) -> None:
    one, two = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (expected, found))
    ignored = {"seconds", "_ran"} if but_for_step is None else {"seconds", "_ran", "ranking", "metrics", "best"}
    assert differences(one, two, ignored) == []
    assert rows(found, but_for_step) == rows(expected, but_for_step)
    assert curves(found, but_for_step) == curves(expected, but_for_step)


def differences(one: Any, two: Any, ignored: set[str], path: str = "") -> list[str]:
    """Places where two checkpoints differ in any bit."""
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [path]
    if isinstance(one, (list, tuple)):
        one, two = dict(enumerate(one)), dict(enumerate(two))
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [f"{path}: {sorted(map(str, one.keys() ^ two.keys()))} in one only"]
        kept = one.keys() - ignored
        return [place for key in kept for place in differences(one[key], two[key], ignored, f"{path}/{key}")]
    return [] if one == two or (one != one and two != two) else [f"{path}: {one} and {two}"]


def rows(run: Path, but_for_step: int | None) -> list[tuple[str, ...]]:
    """metrics.csv without its clock."""
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [(step, tokens, name, value) for step, _, tokens, name, value in lines if not name.startswith("speed/")]
    return [row for row in kept if row[0] != str(but_for_step)]


def curves(run: Path, but_for_step: int | None) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's points as it shows them: purged ones are gone, none stands twice."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    shown = {}
    for tag in events.Tags()["scalars"]:
        if tag.startswith(("speed/", "hp/")):
            continue
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        shown[tag] = [point for point in points if point[0] != but_for_step]
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), (tag, steps)
    return shown
