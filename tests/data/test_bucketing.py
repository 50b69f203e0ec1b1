"""Batches of similar length: the budget holds, little is padding, nothing is lost."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.data.bucketing import BucketedPlan, cut

lengths_of = st.lists(st.integers(1, 80), min_size=1, max_size=300).map(np.array)


@given(lengths=lengths_of, budget=st.none() | st.integers(1, 400), count=st.none() | st.integers(1, 30))
def test_cut_holds_the_budget_and_is_as_long_as_may_be(lengths, budget, count):
    if budget is None and count is None:
        return
    borders = cut(lengths, budget, count)
    assert borders[0] == 0
    assert borders[-1] == len(lengths)

    def fits(run):
        return (budget is None or run.max() * len(run) <= budget) and (count is None or len(run) <= count)

    for begin, end in pairwise(borders):
        assert end > begin
        assert end - begin == 1 or fits(lengths[begin:end])
        assert end == len(lengths) or not fits(lengths[begin : end + 1])


@given(lengths=lengths_of, shuffle=st.booleans(), limit=st.none() | st.integers(1, 50), epoch=st.integers(0, 3))
def test_every_sample_once_under_the_budget(lengths, shuffle, limit, epoch):
    plan = BucketedPlan(lengths, 1, batch_tokens=200, shuffle=shuffle, limit=limit)
    batches = [plan.batch(epoch, step) for step in range(plan.steps(epoch))]
    assert all(len(b) == 1 or lengths[b].max() * len(b) <= 200 for b in batches)
    seen = np.concatenate(batches)
    assert len(seen) == len(set(seen.tolist())) == min(len(lengths), limit or len(lengths))


def test_little_is_padding_and_order_is_random():
    lengths = np.random.default_rng(0).lognormal(3, 0.7, 20_000).astype(int) + 2
    plan = BucketedPlan(lengths, 0, batch_tokens=4096)
    at_random = 1 - lengths.mean() / np.mean([b.max() for b in np.array_split(lengths, 150)])
    assert at_random > 0.5
    for bucketed in (plan, BucketedPlan(lengths, 0, batch_tokens=4096, shuffle=False)):
        padding = sum(
            lengths[b].max() * len(b) - lengths[b].sum()
            for b in (bucketed.batch(0, step) for step in range(bucketed.steps(0)))
        )
        assert bucketed.wasted_tokens() == padding < 0.05 * lengths.sum()
    first, again = plan.batch(0, 0), plan.batch(1, 0)
    assert set(first) != set(again)
    means = np.array([lengths[plan.batch(0, step)].mean() for step in range(plan.steps(0))])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.25  # short and long batches come mixed


def test_a_number_of_samples_instead_of_tokens():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    plan = BucketedPlan(lengths, 0, batch_size=32)
    sizes = [len(plan.batch(0, step)) for step in range(plan.steps(0))]
    assert sorted(sizes)[1:] == [32] * 31
    assert sum(sizes) == 1000
    both = BucketedPlan(lengths, 0, batch_size=32, batch_tokens=640)
    assert max(len(both.batch(0, s)) for s in range(both.steps(0))) == 32
    assert all(lengths[both.batch(0, s)].max() * len(both.batch(0, s)) <= 640 for s in range(both.steps(0)))


def test_one_of_both_is_needed():
    with pytest.raises(ValueError, match="batch_tokens"):
        BucketedPlan(np.ones(3), 0)
