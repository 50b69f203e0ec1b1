"""Sums: a mean over targets, not of batch means."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.tasks.sums import Sums


@given(st.lists(st.lists(st.floats(-100, 100), max_size=9), min_size=1, max_size=8))
def test_any_split_into_batches_gives_the_mean_of_all(batches):
    sums = Sums()
    for batch in batches:
        sums.add("loss", torch.tensor(batch, dtype=torch.float64).sum(), len(batch))
    everything = [x for batch in batches for x in batch]
    mean = sums.means()["loss"]
    if everything:
        assert mean == pytest.approx(sum(everything) / len(everything), abs=1e-9)
    else:
        assert math.isnan(mean)


def test_long_sums_keep_small_terms():
    sums = Sums()
    for _ in range(5_000):
        sums.add("x", torch.tensor(0.1), 1)
    sums.add("x", torch.tensor(2.0**24), 0)  # where float32 no longer takes a 0.1
    assert sums.means()["x"] * 5_000 == pytest.approx(2.0**24 + 5_000 * float(torch.tensor(0.1)), rel=1e-12)
    sums.reset()
    assert sums.means() == {}
