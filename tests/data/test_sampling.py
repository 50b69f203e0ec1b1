"""Which samples make which step: the same for every number of ranks, micro-steps and workers."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lit_tfm.data.bucketing import BucketedPlan
from lit_tfm.data.sampling import Key, SequentialPlan, ShuffledPlan, StepSampler, choose

LENGTHS = np.random.default_rng(0).integers(1, 60, 500)


def plans(size, batch):
    return [
        ShuffledPlan(size, batch, seed=3),
        SequentialPlan(size, batch),
        BucketedPlan(LENGTHS[:size], seed=3, batch_tokens=20 * batch),
    ]


def take(sampler, steps):
    """The first `steps` optimizer steps, each a list of micro-batches."""
    micro = iter(sampler)
    return [[next(micro) for _ in range(sampler.accumulate)] for _ in range(steps)]


@given(
    size=st.integers(1, 300),
    batch=st.integers(1, 40),
    world=st.integers(1, 5),
    accumulate=st.integers(1, 4),
    start=st.integers(0, 400),
    kind=st.integers(0, 2),
)
def test_shares_make_up_the_batch_of_one_process(size, batch, world, accumulate, start, kind):
    plan = plans(size, batch)[kind]
    alone = take(StepSampler(plan, start=start), 5)
    ranks = [take(StepSampler(plan, rank, world, accumulate, start), 5) for rank in range(world)]
    for n in range(5):
        [whole] = alone[n]
        micro = [keys for rank in ranks for keys in rank[n]]
        assert all(micro), "a rank without a batch leaves the others waiting"
        real = [key for keys in micro for key in keys if not key.filler]
        assert sorted(key.index for key in real) == sorted(key.index for key in whole)
        assert {key.epoch for key in real} == {key.epoch for key in whole}
        # fillers only where a share would be empty, one each
        fillers = [keys for keys in micro if any(key.filler for key in keys)]
        assert all(len(keys) == 1 for keys in fillers)
        assert len(fillers) == max(0, world * accumulate - len(whole))
        sizes = [sum(not key.filler for key in keys) for keys in micro]
        assert max(sizes) - min(sizes) <= 1


@given(size=st.integers(1, 300), batch=st.integers(1, 40), kind=st.integers(0, 2), epochs=st.integers(1, 4))
def test_an_epoch_visits_every_sample_once(size, batch, kind, epochs):
    plan = plans(size, batch)[kind]
    sampler = StepSampler(plan)
    steps = [plan.steps(epoch) for epoch in range(epochs)]
    seen = [[] for _ in range(epochs)]
    for [keys] in take(sampler, sum(steps)):
        assert len({key.epoch for key in keys}) == 1
        seen[keys[0].epoch] += [key.index for key in keys]
    assert all(sorted(indices) == list(range(size)) for indices in seen)


@given(size=st.integers(1, 200), batch=st.integers(1, 40), start=st.integers(0, 60), kind=st.integers(0, 2))
def test_resuming_needs_only_the_step(size, batch, start, kind):
    through = take(StepSampler(plans(size, batch)[kind], accumulate=2), start + 4)
    resumed = take(StepSampler(plans(size, batch)[kind], accumulate=2, start=start), 4)
    assert resumed == through[start:]


def test_epochs_of_different_length_are_counted_exactly():
    plan = BucketedPlan(LENGTHS, seed=0, batch_tokens=130)
    steps = [plan.steps(epoch) for epoch in range(20)]
    assert len(set(steps)) > 1, "this test needs epochs that differ"
    sampler = StepSampler(plan)
    expected = [(epoch, step) for epoch in range(20) for step in range(steps[epoch])]
    assert [sampler.locate(n) for n in range(sum(steps))] == expected
    assert StepSampler(plan).locate(sum(steps) - 1) == expected[-1]


def test_epochs_and_seeds_shuffle_differently():
    def order(seed, epoch):
        return np.concatenate([ShuffledPlan(1000, 64, seed).batch(epoch, step) for step in range(16)]).tolist()

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, 1) == orders[1]
    fixed = sum(i == j for i, j in zip(orders[0], orders[1], strict=True))
    assert fixed < 10  # one expected by chance


def test_one_pass_has_a_length_and_ends():
    for world, accumulate in ((1, 1), (3, 1), (2, 2)):
        passes = [
            list(StepSampler(SequentialPlan(10, 4), rank, world, accumulate, endless=False)) for rank in range(world)
        ]
        sampler = StepSampler(SequentialPlan(10, 4), 0, world, accumulate, endless=False)
        assert all(len(one) == len(sampler) == 3 * accumulate for one in passes)
        real = [key.index for one in passes for keys in one for key in keys if not key.filler]
        assert sorted(real) == list(range(10))


def test_endless_has_no_length():
    with pytest.raises(TypeError):
        len(StepSampler(ShuffledPlan(10, 4, 0)))
    with pytest.raises(TypeError):
        len(DataLoader(range(10), batch_sampler=StepSampler(ShuffledPlan(10, 4, 0))))


def test_no_samples_is_refused_rather_than_waited_for():
    with pytest.raises(ValueError, match="no sample"):
        StepSampler(ShuffledPlan(0, 4, 0))


def test_a_limit_is_a_fixed_random_choice():
    assert choose(10, None).tolist() == choose(10, 99).tolist() == list(range(10))
    few, more = choose(1000, 100), choose(1000, 200)
    assert len(few) == 100
    assert set(few) < set(more)
    assert (np.diff(more) > 0).all()
    assert 350 < few.mean() < 650
    assert 30 < (few % 2).sum() < 70  # labels that alternate are not met one-sidedly
    plan = SequentialPlan(1000, 30, limit=100)
    assert np.concatenate([plan.batch(0, s) for s in range(plan.steps(0))]).tolist() == few.tolist()


def test_keys_travel_to_workers():
    assert pickle.loads(pickle.dumps([Key(1, 2, True)])) == [Key(1, 2, True)]


def test_a_far_start_is_quick():
    import time  # timing only; kept loose, it guards against replaying an epoch batch by batch

    began = time.perf_counter()
    next(iter(StepSampler(ShuffledPlan(1_000_000, 8, 0), start=10_000_000)))
    assert time.perf_counter() - began < 1.0
