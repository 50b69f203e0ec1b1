"""How far a run is: one number in [0, 1], the largest of steps done / max_steps and seconds used / budget.

Schedules, validation and the end of the run read only that number, so a run with `budget=10m` anneals to its end
just as one with `max_steps` does.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Steps and training seconds against their bounds; at least one bound must be given.

    `seconds` counts training only: validation, checkpoints and pictures are outside of it (`paused`). It is kept in
    checkpoints, so a resumed run goes on with the time that is left.
    """

    max_steps: int | None = None
    budget: float | None = None  # seconds of training
    seconds: float = 0.0  # training time agreed on by all ranks at the last optimizer step
    tokens: int = 0  # non-padding input tokens of all ranks
    targets: int = 0  # tokens (or examples) the loss was taken over
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

    def fraction(self, step: float) -> float:
        """Progress in [0, 1] at `step` optimizer steps (may be fractional) and the seconds of the last one."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_time = self.seconds / self.budget if self.budget else 0.0
        return min(1.0, max(by_steps, by_time))

    def state(self) -> dict[str, float]:
        return {"seconds": self.seconds, "tokens": self.tokens, "targets": self.targets}

    def restore(self, state: dict[str, float]) -> None:
        self.seconds, self.tokens, self.targets = state["seconds"], state["tokens"], state["targets"]
        self._ran = self.seconds
