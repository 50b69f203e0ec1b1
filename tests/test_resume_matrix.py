"""A run that was interrupted and resumed ends with the bits of one that was not: the matrix of moments and recipes.

Weights, optimizer state, moving averages, metrics.csv and TensorBoard's curves are compared without a tolerance; only
what is measured by a clock may differ. docs/reliability.md holds the table. The first of each recipe's moments runs in
`make test`, all of them in `make soak`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from identical import assert_identical
from interruption import Crash, Interrupt, next_second
from resume_cases import RECIPES, VARIANTS, options

from lit_tfm import config
from lit_tfm.callbacks.checkpoint_files import step_of
from lit_tfm.train import train

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

    def start(target: Path, recipe: str, variant: str, *more: str, callbacks=()) -> Path:
        given = options(recipe, variant, text_folder, labelled_csv, session_cache)
        train(config.compose([*given, f"output_dir={target}", *more]), quiet=True, callbacks=callbacks)
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
        start(target, recipe, variant, callbacks=[Interrupt(moment, "crash" if crash else "signal")])
    if not crash:
        assert ended.value.code == 143


def go_on(target: Path, *more: str) -> None:
    next_second(target)
    assert train(config.compose([f"resume={target}", *more]), quiet=True).status == "finished"


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


def test_killed_in_a_validation_at_which_a_checkpoint_is_due(matrix, tmp_path) -> None:
    """What it was saved for is not done yet: going on from it would leave that validation out."""
    recipe, target = "masked LM, AdamW", tmp_path / "run"
    words = ["++callbacks.checkpoints.every=1"]
    with pytest.raises(Crash):
        matrix(target, recipe, "plain", *words, callbacks=[Interrupt("validation@3", "crash")])
    assert {path.name for path in (target / "checkpoints").glob("*.ckpt")} == {"step-1.ckpt", "step-2.ckpt"}
    go_on(target)
    assert_identical(matrix.uninterrupted(recipe, "plain"), target)
    assert step_of(target / "checkpoints" / "step-3.ckpt") == 3


def test_resumed_twice_in_a_row(matrix, tmp_path) -> None:
    recipe, variant, target = "masked LM, AdamW", "accumulation", tmp_path / "run"
    interrupt(matrix, target, recipe, variant, "micro@4", False)
    next_second(target)
    with pytest.raises(SystemExit):
        train(config.compose([f"resume={target}"]), quiet=True, callbacks=[Interrupt("step@5", "signal")])
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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("end", ["signal", "crash"])
def test_stopped_after_every_single_step(matrix, tmp_path, recipe, variant, end) -> None:
    """Nine lives: each ends after the next step. A signal is agreed on in the step it comes in, so it comes before."""
    accumulate = 3 if variant == "accumulation" else 1
    target, every = tmp_path / "run", ["++callbacks.checkpoints.every=1"]
    for step in range(1, 9):
        next_second(target)
        moment = f"step@{step}" if end == "crash" else f"batch@{(step - 1) * accumulate + 1}"
        with pytest.raises((SystemExit, Crash)):
            matrix(target, recipe, variant, *every, "resume=auto", callbacks=[Interrupt(moment, end)])
    go_on(target)
    assert_identical(matrix.uninterrupted(recipe, variant, *every), target)
