"""How far a figure may be off by the choice of examples: intervals of the percentile bootstrap (Efron 1979).

The examples are drawn again with replacement, `resamples` times; a metric of a resample is one with weights, how often
each example was drawn. So every statistic here takes weights, and all resamples are computed together.

Letters: N examples, R resamples.
"""

from collections.abc import Callable, Iterator

import numpy as np

AT_ONCE = 2_000_000  # weights in memory
LEVEL = 0.95
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]  # weights (R, N) -> name -> (R,)


def weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Pieces (r, N) of all weights (R, N), float64; the same for the same numbers."""
    random = np.random.Generator(np.random.PCG64(seed))
    for size in pieces(n, resamples):
        drawn = random.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def pieces(n: int, resamples: int) -> list[int]:
    """Numbers of resamples that are drawn together."""
    most = max(1, AT_ONCE // n)
    return [min(most, resamples - done) for done in range(0, resamples, most)]


def intervals(
    statistic: Statistic, n: int, resamples: int = 1000, seed: int = 0, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Name -> the ends of the interval that holds `level` of the resamples; nothing where n < 2."""
    if n < 2 or resamples < 1:
        return {}
    found = [statistic(part) for part in weights(n, resamples, seed)]
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = {name: np.nanquantile(np.concatenate([part[name] for part in found]), tails) for name in found[0]}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
