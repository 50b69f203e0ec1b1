"""Differences from a baseline, as they are shown; paired.py makes them. (Apart from it: showing needs no numpy.)"""

from dataclasses import dataclass, field

from lit_tfm.reports.columns import Column
from lit_tfm.reports.numbers import metric


@dataclass
class Difference:
    """Of one metric: a run's value minus the baseline's, and where 95 % of the draws lie."""

    run: str
    metric: str
    baseline: float
    value: float
    low: float
    high: float
    examples: int

    @property
    def difference(self) -> float:
        return self.value - self.baseline

    @property
    def verdict(self) -> str:
        if self.low <= 0 <= self.high:
            return "not clear"
        return "better" if (self.difference > 0) == (self.metric == "accuracy") else "worse"


@dataclass
class Differences:
    baseline: str
    evaluation: str = ""
    rows: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def columns(self) -> list[Column]:
        rows, signed = self.rows, lambda value: f"{value:+.4f}"
        return [
            Column("run", "run", number=False, cells=[row.run for row in rows]),
            Column("metric", "metric", number=False, cells=[row.metric for row in rows]),
            Column("baseline", "baseline", cells=[metric(row.baseline) for row in rows], rank=3),
            Column("value", "run's", cells=[metric(row.value) for row in rows], rank=2),
            Column("difference", "difference", cells=[signed(row.difference) for row in rows]),
            Column("interval", "95 %", cells=[f"{signed(row.low)} {signed(row.high)}" for row in rows]),
            Column("verdict", "", number=False, cells=[row.verdict for row in rows], rank=1),
            Column("examples", "examples", cells=[f"{row.examples:,}" for row in rows], rank=4),
        ]

    def records(self) -> dict[str, dict[str, float]]:
        """By run, for csv and json."""
        found: dict[str, dict[str, float]] = {}
        for row in self.rows:
            name = f"{self.evaluation} {row.metric} difference"
            found.setdefault(row.run, {}).update(
                {name: row.difference, f"{name} low": row.low, f"{name} high": row.high}
            )
        return found

    def title(self) -> str:
        return f"Against {self.baseline}, on {self.evaluation}"
