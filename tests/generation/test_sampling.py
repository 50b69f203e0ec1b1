"""Sampling: the right distribution, from draws that depend on nothing but their key."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lit_tfm.errors import UserError
from lit_tfm.generation.sampling import GREEDY, Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def frequencies(sampling, n=20_000):
    chosen = sampling.choose(LOGITS.expand(n, -1), position=3)
    return torch.bincount(chosen, minlength=6).double() / n


def chi_square(seen, expected, n=20_000):
    possible = expected > 0
    assert seen[~possible].sum() == 0
    return float((n * (seen - expected)[possible] ** 2 / expected[possible]).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    sampling = Sampling(temperature, seed=5)
    assert chi_square(frequencies(sampling), (LOGITS.double() / temperature).softmax(0)) < 20.5  # 5 degrees, p = 0.001


def test_top_k():
    expected = torch.zeros(6, dtype=torch.double)
    expected[:3] = LOGITS[:3].double().softmax(0)
    assert chi_square(frequencies(Sampling(top_k=3)), expected) < 13.8  # 2 degrees, p = 0.001
    assert torch.equal(Sampling(top_k=1).choose(LOGITS[None], 0), torch.tensor([0]))
    torch.testing.assert_close(Sampling(top_k=99).distribution(LOGITS[None])[0], LOGITS.softmax(0))


def test_top_p_takes_the_fewest_that_reach_it():
    likely = LOGITS.softmax(0)  # 0.56 0.21 0.13 0.08 0.03 0.00
    for p, n in ((0.3, 1), (0.55, 1), (0.57, 2), (0.76, 2), (0.77, 3), (0.9, 4), (1.0, 6)):
        kept = Sampling(top_p=p).distribution(LOGITS[None])[0]
        assert (kept > 0).sum() == n, p
        torch.testing.assert_close(kept[:n], likely[:n] / likely[:n].sum())


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=12), st.integers(0, 12), st.floats(0.01, 1.0), st.integers(0, 99)
)
@example([-2.220446049250313e-16, 0.0], 0, 0.5, 0)
def test_only_tokens_with_a_probability_are_drawn(logits, top_k, top_p, position):
    row = torch.tensor(logits)
    sampling = Sampling(0.7, top_k, top_p)
    kept = sampling.distribution(row[None])[0]
    assert float(kept.sum()) == pytest.approx(1.0, abs=1e-5)
    likely = Sampling(0.7).distribution(row[None])[0]
    assert kept[likely == likely.max()].max() > 0  # logits that differ by rounding only are equally likely
    for token in sampling.choose(row.expand(8, -1), position):
        assert kept[token] > 0


def test_greedy():
    logits = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(GREEDY.choose(logits, 0), logits.argmax(1))


def test_draws_are_pure_functions_of_seed_row_and_position():
    logits = LOGITS.expand(50, -1)
    before = torch.random.get_rng_state()
    first = Sampling(seed=1).choose(logits, 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.random.seed(7)
    assert torch.equal(Sampling(seed=1).choose(logits, 4), first)
    assert torch.equal(Sampling(seed=1).choose(logits[:20], 4), first[:20])
    assert not torch.equal(Sampling(seed=2).choose(logits, 4), first)
    assert not torch.equal(Sampling(seed=1).choose(logits, 5), first)


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0}]
)
def test_impossible_settings(options):
    with pytest.raises(UserError, match=r"type e\.g\. temperature"):
        Sampling(**options)


def test_min_p_is_measured_at_the_likeliest():
    likely = LOGITS.softmax(0)  # 0.56 0.21 0.13 0.08 0.03 0.00
    for p, n in ((0.0, 6), (0.01, 5), (0.1, 4), (0.2, 3), (0.3, 2), (0.9, 1), (1.0, 1)):
        kept = Sampling(min_p=p).distribution(LOGITS[None])[0]
        assert (kept > 0).sum() == n, p
        torch.testing.assert_close(kept[:n], likely[:n] / likely[:n].sum())


def test_draws_can_be_numbered():
    logits = LOGITS.expand(6, -1)
    chosen = Sampling(seed=1).choose(logits, 4)
    rows = np.array([3, 0, 0, 5, 1, 2])
    assert torch.equal(Sampling(seed=1).choose(logits, 4, rows), chosen[torch.from_numpy(rows)])
