"""The learning curves of all trials over one another, against tokens, steps or training time."""

import math
from dataclasses import dataclass

from lit_tfm.reports.page import label
from lit_tfm.search.outcomes import Outcome, Point, curve, parameter_text, short_names

# Told apart also by people who see no difference between red and green (Okabe and Ito 2008).
COLOURS = {
    "best": "#0072b2",
    "complete": "#56b4e9",
    "pruned": "#e69f00",
    "failed": "#d55e00",
    "running": "#999999",
}
ORDER = ("running", "failed", "pruned", "complete", "best")  # what is drawn later lies on top


@dataclass(frozen=True)
class Curve:
    """One run of one trial. `kind` is the trial's state, or best."""

    number: int
    kind: str
    name: str
    points: list[Point]

    @property
    def colour(self) -> str:
        return COLOURS[self.kind]


def curves(trials: list[Outcome], metric: str, best: int | None) -> list[Curve]:
    """Of all trials that have measured something: from the run folders, else from what was reported at the rungs."""
    found = []
    for trial in trials:
        kind = "best" if trial.number == best else trial.state
        if kind not in COLOURS:
            continue
        runs = [points for run in trial.runs if (points := finite(curve(run, metric)))]
        reported = finite([Point(step, math.nan, step, value) for step, value in sorted(trial.reported.items())])
        for points in runs or ([reported] if reported else []):
            found.append(Curve(trial.number, kind, description(trial), points))
    return sorted(found, key=lambda c: (ORDER.index(c.kind), c.number))


def finite(points: list[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value)]


def description(trial: Outcome) -> str:
    names = short_names(list(trial.searched))
    params = ", ".join(f"{names[key]}={parameter_text(value)}" for key, value in trial.searched.items())
    return f"trial {trial.number} ({trial.state}): {params}" if params else f"trial {trial.number} ({trial.state})"


def traces(drawn: list[Curve]) -> list[dict]:
    """Plotly's, without x: that is a choice (`axes`). One entry in the legend for each kind."""
    result, seen = [], set()
    for each in drawn:
        result.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "y": [point.value for point in each.points],
                "name": each.kind,
                "legendgroup": each.kind,
                "showlegend": each.kind not in seen,
                "line": {"color": each.colour, "width": 3 if each.kind == "best" else 1.3},
                "marker": {"size": 7 if each.kind == "best" else 4},
                "opacity": 1.0 if each.kind == "best" else 0.75,
                "hovertemplate": f"{label(each.name)}<br>%{{x:,}}: %{{y:.4f}}<extra></extra>",
            }
        )
        seen.add(each.kind)
    return result


def axes(drawn: list[Curve]) -> dict[str, list[list[float]]]:
    """x for each trace, for each axis that can be chosen."""
    chosen = {"tokens": [[point.tokens for point in each.points] for each in drawn]}
    if all(math.isfinite(point.seconds) for each in drawn for point in each.points):
        chosen["steps"] = [[point.step for point in each.points] for each in drawn]
        chosen["seconds of training"] = [[point.seconds for point in each.points] for each in drawn]
    return chosen


def limits(drawn: list[Curve]) -> list[float] | None:
    """Of the y axis: a diverged trial must not squeeze all others into a line. None where nothing sticks out."""
    values = sorted(point.value for each in drawn for point in each.points)
    if len(values) < 8:
        return None
    low, high = values[0], values[-1]
    usual = values[int(0.97 * (len(values) - 1))]
    if high - low <= 3 * (usual - low) or usual == low:
        return None
    margin = 0.06 * (usual - low)
    return [low - margin, usual + margin]
