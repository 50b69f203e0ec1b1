"""Batches of similar length, so that little of a padded batch is padding.

Shuffle, sort by length within windows, cut under a token budget, shuffle the batches. N samples.
"""

from functools import lru_cache

import numpy as np

from lit_tfm.data.sampling import choose

WINDOW = 50  # batches a sorting window holds: the more, the less padding and the less chance in who meets whom


def cut(lengths: np.ndarray, budget: int | None, count: int | None) -> np.ndarray:
    """Borders (batches + 1,) of consecutive runs of `lengths` (N,) that are as long as may be.

    A run fits when its longest sample times its number of samples is at most `budget` tokens, padding included, and
    its number at most `count`. A sample longer than the budget makes a run of its own.
    """
    most = min(
        limit for limit in (count, budget and budget // max(1, int(lengths.min(initial=1)))) if limit is not None
    )
    most = max(1, most)
    ranks = np.arange(1, most + 1)
    borders = [0]
    while borders[-1] < len(lengths):
        here = lengths[borders[-1] : borders[-1] + most]
        fits = len(here)
        if budget is not None:
            padded = np.maximum.accumulate(here) * ranks[: len(here)]  # rises, so the border is found by bisection
            fits = max(1, int(np.searchsorted(padded, budget, side="right")))
        borders.append(borders[-1] + fits)
    return np.array(borders)


class BucketedPlan:
    """Every sample once an epoch, in batches of similar length; a plan as in `sampling.Plan`.

    lengths:      (N,) tokens of each sample as the collator will pad it, special tokens included.
    batch_tokens: a batch's tokens at most, padding included (a single longer sample excepted).
    batch_size:   a batch's samples at most. At least one of the two is needed.
    shuffle:      False sorts everything by length and keeps that order in every epoch: validation.
    limit:        only so many samples (see `sampling.choose`).
    """

    def __init__(
        self,
        lengths: np.ndarray,
        seed: int,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        limit: int | None = None,
    ) -> None:
        if batch_tokens is None and batch_size is None:
            raise ValueError("neither batch_tokens nor batch_size")
        self.lengths, self.seed, self.shuffle = np.asarray(lengths, dtype=np.int64), seed, shuffle
        self.batch_tokens, self.batch_size = batch_tokens, batch_size
        self.samples = choose(len(self.lengths), limit)
        self._epoch = lru_cache(maxsize=2)(self._draw)  # two: a loader reads ahead over the border of an epoch

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples in sorted runs, the borders of the batches, and the order of the batches."""
        if not self.shuffle:
            samples = self.samples[np.argsort(self.lengths[self.samples], kind="stable")]
            borders = cut(self.lengths[samples], self.batch_tokens, self.batch_size)
            return samples, borders, np.arange(len(borders) - 1)
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        samples = self._sort_windows(random.permutation(self.samples))
        borders = cut(self.lengths[samples], self.batch_tokens, self.batch_size)
        return samples, borders, random.permutation(len(borders) - 1)

    def _sort_windows(self, samples: np.ndarray) -> np.ndarray:
        """Sorts each window, every other one downwards: neighbours at a border are alike, so no batch is torn there."""
        window = np.arange(len(samples)) // max(1, self._window())
        lengths = self.lengths[samples]
        return samples[np.lexsort((np.where(window % 2, -lengths, lengths), window))]

    def _window(self) -> int:
        """Samples in a window."""
        sizes = [self.batch_size] if self.batch_size is not None else []
        if self.batch_tokens is not None and len(self.samples):
            sizes.append(int(self.batch_tokens / max(1.0, self.lengths[self.samples].mean())))
        return WINDOW * max(1, min(sizes, default=1))

    def steps(self, epoch: int) -> int:
        return len(self._epoch(epoch)[2])

    def batch(self, epoch: int, step: int) -> np.ndarray:
        samples, borders, order = self._epoch(epoch)
        chosen = order[step]
        return samples[borders[chosen] : borders[chosen + 1]]

    def wasted_tokens(self, epoch: int = 0) -> int:
        """Padding of an epoch, when each batch is padded to its longest sample."""
        samples, borders, _ = self._epoch(epoch)
        if not len(samples):
            return 0
        longest = np.maximum.reduceat(self.lengths[samples], borders[:-1])
        return int((longest * np.diff(borders)).sum() - self.lengths[samples].sum())
