"""Counter-based noise: uniform, and a function of (seed, epoch, sample) alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.data.noise import number, uniform

words = st.integers(0, 2**40)


@given(seed=words, epoch=words, index=st.lists(words, min_size=1, max_size=8), n=st.integers(1, 20), data=st.data())
def test_noise_does_not_depend_on_the_batch(seed, epoch, index, n, data):
    whole = uniform(seed, epoch, np.array(index), 1, n)
    assert whole.shape == (len(index), n)
    assert whole.min() >= 0
    assert whole.max() < 1
    order = data.draw(st.permutations(range(len(index))))
    np.testing.assert_array_equal(uniform(seed, epoch, np.array(index)[order], 1, n), whole[order])
    np.testing.assert_array_equal(uniform(seed, epoch, index[0], 1, n + 7)[0, :n], whole[0])
    np.testing.assert_array_equal(uniform(seed, np.full(len(index), epoch), np.array(index), 1, n), whole)


def test_each_coordinate_changes_everything():
    base = uniform(0, 0, 0, 0, 1000)
    for other in (uniform(1, 0, 0, 0, 1000), uniform(0, 1, 0, 0, 1000), uniform(0, 0, 1, 0, 1000)):
        assert abs(np.corrcoef(base[0], other[0])[0, 1]) < 0.12
        assert not np.isin(base, other).any()
    assert not np.isin(base, uniform(0, 0, 0, 1, 1000)).any()
    assert not np.isin(uniform(0, 1, 2, 3, 9), uniform(0, 2, 1, 3, 9)).any()  # coordinates are not interchangeable
    assert not np.isin(uniform(3, 1, 2, 0, 9), uniform(0, 1, 2, 3, 9)).any()


def test_uniform_along_every_axis():
    """Chi-square over 64 bins and correlations: per sample, and across neighbouring samples, epochs and seeds."""
    index = np.arange(2000)
    draws = {
        "within": uniform(5, 0, index, 0, 50).ravel(),
        "across samples": np.concatenate([uniform(5, epoch, index, 0, 1)[:, 0] for epoch in range(50)]),
        "across seeds": np.concatenate([uniform(seed, 0, index[:100], 0, 10).ravel() for seed in range(100)]),
    }
    for what, x in draws.items():
        counts = np.bincount((x * 64).astype(int), minlength=64)
        chi2 = ((counts - len(x) / 64) ** 2 / (len(x) / 64)).sum()
        assert 63 - 4 * 11.3 < chi2 < 63 + 4 * 11.3, what  # 63 degrees of freedom, standard deviation sqrt(126)
        assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / np.sqrt(len(x)), what
    low_bits = (uniform(5, 0, index, 0, 50) * 2**53).astype(np.int64) & 1
    assert abs(low_bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(low_bits.size)


@given(seed=words, epoch=words, index=words, stream=st.integers(0, 2000))
def test_one_number_is_the_first_of_many(seed, epoch, index, stream):
    assert number(seed, epoch, index, stream) == uniform(seed, epoch, index, stream, 3)[0, 0]
