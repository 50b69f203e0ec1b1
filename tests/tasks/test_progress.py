"""Progress: the further of steps and time; time counts training only and survives a checkpoint."""

import time

import pytest

from lit_tfm.tasks.budget import Budget
from lit_tfm.tasks.progress import Progress


def test_the_further_bound_counts():
    progress = Progress(max_steps=100, budget=60.0, seconds=15.0)
    assert progress.fraction(10) == 0.25
    assert progress.fraction(50) == 0.5
    assert progress.fraction(1000) == 1.0
    assert Progress(budget=60.0, seconds=15.0).fraction(10**6) == 0.25
    assert Progress(max_steps=4).fraction(0.5) == 0.125


def test_pauses_cost_nothing_even_nested():
    progress = Progress(budget=1.0)
    progress.start()
    with progress.paused():
        time.sleep(0.05)
        with progress.paused():
            time.sleep(0.05)
        time.sleep(0.05)
    assert progress.elapsed() < 0.05
    time.sleep(0.05)
    assert progress.elapsed() >= 0.05


def test_goes_on_after_a_checkpoint():
    progress = Progress(budget=10.0, seconds=4.0, tokens=7, targets=3)
    other = Progress(budget=10.0)
    other.restore(progress.state())
    other.start()
    assert other.elapsed() == pytest.approx(4.0, abs=0.05)
    assert (other.tokens, other.targets) == (7, 3)


def test_tokens_and_flops_bound_a_run_as_steps_do():
    progress = Progress(max_steps=100, tokens=500)
    progress.bound(Budget(2000, "tokens"), flops_per_token=10.0)
    assert progress.fraction(10) == 0.25
    assert progress.fraction(10, ahead=100) == 0.3  # in the middle of a step of 200
    assert progress.fraction(50) == 0.5
    assert progress.nominal(0.1) == 200
    progress.bound(Budget(50_000, "flops"), flops_per_token=10.0)
    assert progress.fraction(0) == 0.1
    progress.bound(Budget(60, "seconds"), flops_per_token=None)
    assert progress.fraction(0) == 0.0
    progress.bound(None, None)
    assert (progress.budget, progress.max_tokens, progress.nominal(0.1)) == (None, None, 100)
