"""Is it the same again? What two runs were made with, and whether their numbers are equal to the last digit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_tfm.reports.reading import Point, Run

# Measured by a clock: never the same twice.
_CLOCKED = "speed/"


def environment_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, then, now) of the versions, the commit and the machine where they are not the same."""
    old, new = _facts(then), _facts(now)
    return [(name, str(old.get(name)), str(new.get(name))) for name in {**old, **new} if old.get(name) != new.get(name)]


def _facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    packages, git = environment.get("packages"), environment.get("git")
    git = git if isinstance(git, Mapping) else {}
    facts = {name: environment.get(name) for name in ("python", "hardware", "platform", "cpu_count")}
    facts |= packages if isinstance(packages, Mapping) else {}
    changed = "" if git.get("clean", True) else " with changes"
    return {**facts, "git commit": f"{str(git['commit'])[:12]}{changed}" if git.get("commit") else None}


@dataclass
class Repetition:
    """`metrics`: (name, then, now) of the last values; `equal` of `compared` numbers of metrics.csv."""

    metrics: list[tuple[str, float, float]]
    compared: int
    equal: int
    first: tuple[str, Point, Point] | None = None  # the first number, by steps, that is another
    until: int = 0  # the step up to which both logged

    @property
    def identical(self) -> bool:
        return self.compared > 0 and self.equal == self.compared and all(then == now for _, then, now in self.metrics)


def compare(old: Run, new: Run) -> Repetition:
    """Of a run that ended earlier, or logged less, what both have is compared."""
    found = Repetition([], 0, 0)
    ended = old.steps == new.steps
    if ended:
        names = [name for name in old.metrics if name in new.metrics]
        found.metrics = [(name, old.metrics[name], new.metrics[name]) for name in names]
    different = []
    for name in [name for name in old.points if name in new.points and not name.startswith(_CLOCKED)]:
        now = {point.step: point for point in new.points[name]}
        pairs = [(point, now[point.step]) for point in old.points[name] if point.step in now]
        found.compared += len(pairs)
        found.until = max([found.until, *(point.step for point, _ in pairs)])
        unequal = [(name, *pair) for pair in pairs if not _same(*pair)]
        found.equal += len(pairs) - len(unequal)
        different += unequal
    found.first = min(different, key=lambda case: case[1].step, default=None)
    return found


def _same(a: Point, b: Point) -> bool:
    """Bit for bit, as far as text keeps floats, which is all of it; NaN is NaN."""
    return repr(a.value) == repr(b.value) and a.tokens == b.tokens


def found_elsewhere(given: Any, found: Any) -> bool:
    """Whether a path of a config, or several of them, is not where it says."""
    if isinstance(given, Mapping):
        return any(found_elsewhere(given[key], found[key]) for key in given)
    if isinstance(given, (list, tuple)):
        return any(found_elsewhere(a, b) for a, b in zip(given, found, strict=True))
    return Path(str(given)).expanduser().resolve() != Path(str(found)).resolve()
