"""Pictures of a comparison, as plain plotly figures: curves over four axes, and what quality costs.

Made of dicts: plotly itself need not be imported for it.
"""

from collections.abc import Sequence
from typing import Any

from lit_tfm.reports.columns import Column
from lit_tfm.reports.page import Figure, label
from lit_tfm.reports.reading import AXES, place
from lit_tfm.reports.tables import COSTS, Comparison, Row, larger_is_better

COLOURS = (
    *("#3b7dd8", "#e8710a", "#1a9e5c", "#c53dc5", "#d93a3a"),
    *("#0aa5b5", "#a67c00", "#7a68d8", "#6b8e23", "#d1477a"),
)
DASHES = ("solid", "dash", "dot")
_LEGEND = len(COLOURS) * len(DASHES)  # more rows than that have no names beside the picture, only when pointed at
_POINTS = 400  # of a curve; more can't be seen
_TITLES = {"steps": "steps", "tokens": "tokens", "seconds": "seconds of training", "flops": "FLOPs"}
_COSTS = {**_TITLES, "parameters": "parameters"}


def curve_names(result: Comparison, asked: Sequence[str] = ()) -> list[str]:
    """Metrics with a curve: the monitors, the losses of validation and training, bits per byte; or those asked for."""
    wanted = asked or [*result.monitors, "val/loss", "val/bits_per_byte", "train/loss"]
    found = dict.fromkeys(name for name in wanted if any(len(run.points.get(name, ())) > 1 for run in result.runs))
    return list(found)


def curve(result: Comparison, name: str) -> Figure:
    """A line a run; seeds of one setting share a colour and a name."""
    axes: dict[str, list] = {_TITLES[axis]: [] for axis in AXES}
    data = []
    for i, row in enumerate(result.rows):
        for run in row.runs:
            points = run.points.get(name)
            if not points:
                continue
            points = _thinned(points)
            line = {"color": _colour(i, len(result.rows)), "dash": _dash(i, len(result.rows)), "width": 1.6}
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if len(points) < 40 else "lines",
                    "name": label(_short(row.name)),
                    "legendgroup": str(i),
                    "showlegend": run is row.run,
                    "y": [point.value for point in points],
                    "line": line,
                    "marker": {"size": 5},
                    "hovertemplate": f"{label(_which(row, run))}<br>%{{x:.4s}}: %{{y:.5g}}<extra></extra>",
                }
            )
            for axis in AXES:
                places = [place(run, point, axis) for point in points]
                axes[_TITLES[axis]].append(None if None in places else places)
    axes = {title: xs for title, xs in axes.items() if any(xs)}
    layout = _layout(result, label(name)) | {"hovermode": "closest"}
    return Figure({"data": data, "layout": layout}, axes=axes, height=_height(result))


def _thinned(points: Sequence[Any]) -> list[Any]:
    """Evenly chosen, the last one among them."""
    stride = -(-len(points) // _POINTS)
    return [*points[:-1:stride], points[-1]]


def scatter(result: Comparison, name: str, told: Sequence[Column]) -> Figure | None:
    """Quality over cost, and the front: what nothing beats in both. None where no run has the metric."""
    key = f"best/{name}"
    larger = larger_is_better(name, result.runs)
    rows = [row for row in result.rows if row.get(key) is not None]
    rows.sort(key=lambda row: row.value(key), reverse=larger)
    if not rows:
        return None
    qualities = [row.value(key) for row in rows]
    places = [result.rows.index(row) for row in rows]
    axes: dict[str, list] = {}
    for cost in COSTS:
        xs = [row.get(cost) for row in rows]
        if any(x is not None for x in xs):
            best = front(xs, qualities, larger)
            axes[_COSTS[cost]] = [[x if i in best else None for i, x in enumerate(xs)], xs]
    few = len(rows) <= 12
    line = {"type": "scatter", "mode": "lines", "y": qualities, "connectgaps": True, "hoverinfo": "skip"}
    line |= {"line": {"shape": "vh", "width": 1.4, "dash": "dot", "color": "#8a939c"}, "name": "Pareto front"}
    points = {
        "type": "scatter",
        "mode": "markers+text" if few else "markers",
        "y": qualities,
        "text": [label(_short(row.name)) for row in rows] if few else None,
        "textposition": "top center",
        "textfont": {"size": 11},
        "cliponaxis": False,
        "marker": {"size": 10, "color": [_colour(i, len(result.rows)) for i in places]},
        "error_y": {"type": "data", "array": [row.spread(key) for row in rows], "thickness": 1},
        "hovertext": [_hover(row, told, result) for row in rows],
        "hovertemplate": "%{hovertext}<br>%{x:.4s}: %{y:.5g}<extra></extra>",
        "name": "runs",
        "showlegend": False,
    }
    layout = _layout(result, f"best {label(name)}") | {"showlegend": True, "margin": {"t": 30, "r": 40}}
    return Figure({"data": [line, points], "layout": layout}, axes=axes, height=440)


def front(costs: Sequence[float | None], qualities: Sequence[float], larger: bool) -> set[int]:
    """Places of what nothing else beats in both, cost and quality."""
    sign = -1 if larger else 1
    order = sorted(
        (i for i, cost in enumerate(costs) if cost is not None), key=lambda i: (costs[i], sign * qualities[i])
    )
    best, found = None, set()
    for i in order:
        if best is None or sign * qualities[i] < best:
            best = sign * qualities[i]
            found.add(i)
    return found


def _hover(row: Row, told: Sequence[Column], result: Comparison) -> str:
    """The run, and its first settings that differ."""
    at = result.rows.index(row)
    lines = [f"{column.title}: {column.cells[at]}" for column in told if column.key in result.settings][:8]
    status = [] if row.run.status == "finished" else [row.run.status]
    return "<br>".join(label(text) for text in [row.name, *status, *lines])


def _which(row: Row, run) -> str:
    return row.name if len(row.runs) == 1 else f"{row.name}: seed {run.seed}"


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:20]} … {name[-20:]}"


def _colour(i: int, rows: int) -> str:
    """A colour each; of too many, from blue (the table's first) to grey."""
    if rows <= _LEGEND:
        return COLOURS[i % len(COLOURS)]
    share = i / max(1, rows - 1)
    return f"hsl({215 - 30 * share:.0f}, {75 - 65 * share:.0f}%, {45 + 15 * share:.0f}%)"


def _dash(i: int, rows: int) -> str:
    return DASHES[i // len(COLOURS)] if rows <= _LEGEND else "solid"


def _layout(result: Comparison, title: str) -> dict[str, Any]:
    return {
        "margin": {"t": 10, "r": 10},
        "xaxis": {"rangemode": "tozero"},
        "yaxis": {"title": {"text": title}},
        "showlegend": len(result.rows) <= _LEGEND,
        "legend": {"orientation": "h", "y": -0.22, "x": 0},
    }


def _height(result: Comparison) -> int:
    return 400 + 12 * min(len(result.rows), _LEGEND)
