"""Who runs a trial, and whether it still does.

On one machine a process is known by its id and its start; across machines by a sign of life that changes. Nobody's
clock is compared with another's: an observer times, by its own clock, how long the sign has stayed the same.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_tfm.holding import LOCK, birth, machine

BEAT = 20.0  # seconds between two signs of life
GRACE = 90.0  # seconds without one after which a worker of another machine counts as dead
UNSIGNED = 10.0  # seconds a trial may be running without anybody's name on it


@dataclass(frozen=True)
class Holder:
    """One worker with one attempt at a trial."""

    worker: str
    machine: str
    pid: int
    birth: float | None
    folder: str  # the trial's, absolute, on that machine
    attempt: int = 1
    lost: int = 0  # attempts whose worker died
    released: bool = False  # given up in order: anybody may go on

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def here(self) -> bool:
        return self.machine == machine()

    @property
    def alive(self) -> bool:
        return not self.released and birth(self.pid) == self.birth is not None

    @classmethod
    def of(cls, user_attrs: dict[str, Any]) -> "Holder | None":
        record = user_attrs.get("holder")
        return cls(**record) if record else None


class Observer:
    """Tells how long each sign of life has been seen unchanged."""

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[Any, float]] = {}

    def unchanged(self, key: Any, sign: Any) -> float:
        """Seconds since `sign` was first seen for `key`."""
        known = self._seen.get(key)
        if known is None or known[0] != sign:
            known = self._seen[key] = (sign, time.monotonic())
        return time.monotonic() - known[1]


def sign_file(folder: str | Path) -> Path:
    return Path(folder) / LOCK


def sign_of_life(user_attrs: dict[str, Any], holder: Holder) -> tuple:
    """What changes while a worker of another machine lives: an attribute, or the time of a file on a shared disk."""
    try:
        touched = sign_file(holder.folder).stat().st_mtime_ns
    except OSError:
        touched = None
    return holder.attempt, user_attrs.get("beat"), touched
