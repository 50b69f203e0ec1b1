"""Which samples make which optimizer step.

A `Plan` says, as a pure function of (seed, epoch, step), which samples make the GLOBAL batch of a step; `StepSampler`
hands each rank and micro-step its slice of that batch. So the samples of step n are the same for every number of
ranks, accumulated micro-batches and workers, and a run that resumes at step n needs the number n, not a replay.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Key:
    """Names one sample of one epoch. All noise of the sample (masks, spans) derives from it and the seed.

    A filler keeps the ranks in step when a batch has fewer samples than there are shares: the collator makes a row of
    it, but ignores its labels, so it counts for nothing in any sum.
    """

    epoch: int
    index: int
    filler: bool = False


class Plan(Protocol):
    """Pure functions, no state."""

    def steps(self, epoch: int) -> int:
        """Optimizer steps in this epoch; may differ from epoch to epoch."""

    def batch(self, epoch: int, step: int) -> np.ndarray:
        """Sample indices of the global batch of step `step` of epoch `epoch`, both from 0."""


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of the samples in this epoch: drawn once an epoch, so that a step costs only its own slice."""
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(size)
    order.flags.writeable = False  # shared by every plan that asks for it
    return order


class ShuffledPlan:
    """Training on samples of one length: every sample once an epoch, in an order of the epoch's own.

    The last batch of an epoch holds what is left over; no batch mixes two epochs.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed

    def steps(self, epoch: int) -> int:
        return -(-self.size // self.batch_size)

    def batch(self, epoch: int, step: int) -> np.ndarray:
        return permutation(self.seed, epoch, self.size)[step * self.batch_size : (step + 1) * self.batch_size]


class SequentialPlan:
    """Validation: every sample in order, or `limit` of them (see `choose`)."""

    def __init__(self, size: int, batch_size: int, limit: int | None = None) -> None:
        self.samples = choose(size, limit)
        self.batch_size = batch_size

    def steps(self, epoch: int) -> int:
        return -(-len(self.samples) // self.batch_size)

    def batch(self, epoch: int, step: int) -> np.ndarray:
        return self.samples[step * self.batch_size : (step + 1) * self.batch_size]


def choose(size: int, limit: int | None) -> np.ndarray:
    """`limit` of range(size), in order; all of them where there is no limit or it is not reached.

    Drawn at random, because files sorted by label are common, but always the same ones whatever the run's seed, so
    that trials compare; a larger limit holds the smaller one's choice.
    """
    if limit is None or limit >= size:
        return np.arange(size)
    return np.sort(permutation(0, 0, size)[:limit])


class StepSampler:
    """The `batch_sampler` of one rank: for step n = start, start + 1, ... yields `accumulate` lists of keys.

    The global batch is cut into world * accumulate parts whose sizes differ by one at most; micro-step a of rank r
    gets part a * world + r. The union over ranks and micro-steps is the batch of the plan, whatever the numbers are.
    A part that would be empty gets one filler, because a rank without a batch would leave the others waiting.

    Endless for training (the trainer ends the run, and the loader has no length); one pass otherwise.
    """

    def __init__(
        self, plan: Plan, rank: int = 0, world: int = 1, accumulate: int = 1, start: int = 0, endless: bool = True
    ) -> None:
        if not 0 <= rank < world or accumulate < 1 or start < 0:
            raise ValueError(f"rank {rank} of {world}, accumulate {accumulate}, start {start}")
        if plan.steps(0) < 1:
            raise ValueError("the plan has no batch: there is no sample")
        self.plan, self.rank, self.world, self.accumulate = plan, rank, world, accumulate
        self.start, self.endless = start, endless
        self._ends = [plan.steps(0)]  # global step at which epoch e has ended

    def locate(self, n: int) -> tuple[int, int]:
        """Global step -> (epoch, step in that epoch); epochs may differ in length."""
        while self._ends[-1] <= n:
            self._ends.append(self._ends[-1] + self.plan.steps(len(self._ends)))
        epoch = bisect_right(self._ends, n)
        return epoch, n - (self._ends[epoch - 1] if epoch else 0)

    def step(self, n: int) -> list[list[Key]]:
        """This rank's share of global step n: one list of keys a micro-step."""
        epoch, step = self.locate(n)
        samples = self.plan.batch(epoch, step).tolist()
        parts, size = self.world * self.accumulate, len(samples)
        shares = []
        for part in range(self.rank, parts, self.world):
            share = samples[size * part // parts : size * (part + 1) // parts]
            shares.append([Key(epoch, index) for index in share] or [Key(epoch, samples[0], filler=True)])
        return shares

    def __iter__(self) -> Iterator[list[Key]]:
        n = self.start
        while self.endless or n < self._ends[0]:
            yield from self.step(n)
            n += 1

    def __len__(self) -> int:
        if self.endless:
            raise TypeError("an endless sampler has no length")
        return max(0, self._ends[0] - self.start) * self.accumulate
