"""How far a run is: one number in [0, 1], the largest of what is done of each bound: steps, tokens, seconds.

Schedules, validation and the end of the run read only that number, so a run with `budget=10m` or
`budget='2e6 tokens'` anneals to its end just as one with `max_steps` does.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from lit_tfm.tasks.budget import Budget, nominal

COUNTED = ("seconds", "tokens", "targets", "skipped", "skipped_in_a_row")  # kept in checkpoints


@dataclass
class Progress:
    """Steps, tokens and training seconds against their bounds; at least one bound must be given.

    `seconds` counts training only: validation, checkpoints and pictures are outside of it (`paused`). It is kept in
    checkpoints, as tokens are, so a resumed run goes on with what is left.
    """

    max_steps: int | None = None
    budget: float | None = None  # seconds of training
    max_tokens: float | None = None
    asked: Budget | None = None  # what `budget` or `max_tokens` came from
    seconds: float = 0.0  # training time agreed on by all ranks at the last optimizer step
    tokens: int = 0  # non-padding input tokens of all ranks
    targets: int = 0  # tokens (or examples) the loss was taken over
    skipped: int = 0  # optimizer steps left out because loss or gradient was not finite
    skipped_in_a_row: int = 0  # of these, up to now
    _since: float | None = field(default=None, repr=False)
    _ran: float = field(default=0.0, repr=False)

    def start(self) -> None:
        self._since, self._ran = time.perf_counter(), self.seconds

    def stop(self) -> None:
        self._ran, self._since = self.elapsed(), None

    def elapsed(self) -> float:
        """Training seconds by this rank's clock."""
        return self._ran + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @contextmanager
    def paused(self):
        """What happens inside costs the run no budget."""
        running = self._since is not None
        self.stop()
        yield
        if running:
            self._since = time.perf_counter()

    def bound(self, budget: Budget | None, flops_per_token: float | None) -> None:
        """End with this budget, or only with `max_steps` where it is None."""
        self.asked, self.budget, self.max_tokens = budget, None, None
        if budget is not None and budget.unit == "seconds":
            self.budget = budget.amount
        elif budget is not None:
            self.max_tokens = budget.amount / (flops_per_token if budget.unit == "flops" else 1)

    def fraction(self, step: float, ahead: float = 0.0) -> float:
        """Progress in [0, 1] at `step` optimizer steps, the seconds of the last one, and `ahead` tokens more.

        Tokens are counted by whole steps: in the middle of one, `step` and `ahead` both say how far into it.
        """
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_time = self.seconds / self.budget if self.budget else 0.0
        by_tokens = (self.tokens + ahead) / self.max_tokens if self.max_tokens else 0.0
        return min(1.0, max(by_steps, by_time, by_tokens))

    def nominal(self, share: float) -> int:
        """A share of the run as a whole number that all trials of a sweep have in common; see `Budget.nominal`."""
        return nominal(share, self.asked)

    def state(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in COUNTED}

    def restore(self, state: dict[str, float]) -> None:
        for name in COUNTED:
            setattr(self, name, state.get(name, 0))
        self._ran = self.seconds
