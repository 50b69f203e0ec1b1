"""Bootstrap intervals: seeded, and as wide as theory says."""

import numpy as np
import pytest

from lit_tfm.evaluation import bootstrap


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(1)}


def test_weights_are_draws_with_replacement() -> None:
    made = np.concatenate(list(bootstrap.weights(50, 400, seed=1)))
    assert made.shape == (400, 50)
    assert (made.sum(1) == 50).all()
    assert made.mean() == 1
    assert made.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # binomial


def test_pieces_do_not_change_the_draws(monkeypatch) -> None:
    whole = np.concatenate(list(bootstrap.weights(20, 30, seed=3)))
    monkeypatch.setattr(bootstrap, "AT_ONCE", 100)
    pieces = list(bootstrap.weights(20, 30, seed=3))
    assert len(pieces) == 6
    assert np.array_equal(np.concatenate(pieces), whole)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    low, high = bootstrap.intervals(mean_of(values), 400, resamples=4000)["mean"]
    wide = 1.96 * values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - wide, values.mean() + wide), abs=0.1 * wide)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=40)
    one, two, other = (bootstrap.intervals(mean_of(values), 40, 100, seed) for seed in (0, 0, 1))
    assert one == two != other


def test_of_one_example_nothing_is_known() -> None:
    assert bootstrap.intervals(mean_of(np.ones(1)), 1) == {}
    assert bootstrap.intervals(mean_of(np.ones(9)), 9, resamples=0) == {}
