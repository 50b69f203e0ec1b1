"""Counter-based random numbers: the noise of a sample is a pure function of (seed, epoch, sample index).

So masks and spans depend neither on the batch a sample lands in, nor on its order, the rank, the worker or what was
drawn before, and a resumed run draws the same. B samples, n numbers each.

The generator is splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): number j of
a key is mix(key + j * gamma), computed for all samples at once.
"""

import numpy as np
from numpy.typing import ArrayLike

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


def _mix(x: np.ndarray) -> np.ndarray:
    """Bijection of 64-bit words whose output bits each depend on all input bits (Stafford's variant 13)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _words(x: ArrayLike) -> np.ndarray:
    """As a 1-D array of 64-bit words: numpy wraps arrays silently but warns of overflow in scalars."""
    return np.atleast_1d(np.asarray(x, dtype=np.int64)).view(np.uint64)


def uniform(seed: int, epoch: ArrayLike, index: ArrayLike, stream: int, n: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 (B, n).

    `epoch` and `index` are (B,) or scalars that broadcast. `stream` tells several uses within one sample apart (which
    tokens, what they turn into), which would otherwise see the same numbers. The first k numbers do not depend on n,
    so a padded batch may ask for more than a sample needs.
    """
    key = _words(0)
    for part in (seed, stream, epoch, index):  # a chain, not a sum: (1, 2) and (2, 1) are different keys
        key = _mix((key + GAMMA) ^ _words(part))  # (1,) or (B,)
    counter = np.arange(1, n + 1, dtype=np.uint64) * GAMMA
    bits = _mix(key[:, None] + counter)  # (B, n)
    return (bits >> np.uint64(11)) * 2.0**-53


def number(seed: int, epoch: int, index: int, stream: int) -> float:
    """The first of `uniform`'s numbers of one sample, in plain Python: cheaper than arrays of one."""
    key = 0
    for part in (seed, stream, epoch, index):
        key = _mix_one(((key + _GAMMA) & _WORD) ^ (part & _WORD))
    return (_mix_one((key + _GAMMA) & _WORD) >> 11) * 2.0**-53


_GAMMA, _WORD = int(GAMMA), 2**64 - 1


def _mix_one(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)
