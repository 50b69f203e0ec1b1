"""Pictures of a comparison, as plain plotly figures: curves over four axes, and what quality costs.

Made of dicts: plotly itself need not be imported for it.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from lit_tfm.reports.columns import Column
from lit_tfm.reports.numbers import setting
from lit_tfm.reports.page import Figure, label
from lit_tfm.reports.reading import AXES, Run, place
from lit_tfm.reports.settings import short_names
from lit_tfm.reports.tables import COSTS, Comparison, Row, larger_is_better
from lit_tfm.terminal import visible

COLOURS = (
    *("#3b7dd8", "#e8710a", "#1a9e5c", "#c53dc5", "#d93a3a"),
    *("#0aa5b5", "#a67c00", "#7a68d8", "#6b8e23", "#d1477a"),
)
_TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?( \+\d+ seeds?)?$")  # a folder that only says when
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
                    "name": label(_legend(result, row)),
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
    series = [(run, point.value) for run in result.runs for point in run.points.get(name, ())]
    if span := _span(series):
        layout["yaxis"]["range"] = span
    return Figure({"data": data, "layout": layout}, axes=axes, height=_height(result))


def _span(series: Sequence[tuple[Run, float]]) -> list[float] | None:
    """Of the values of runs that did not fail, where a failed one would squeeze them; a double click shows all."""
    kept = [value for run, value in series if run.status != "failed" and math.isfinite(value)]
    failed = [value for run, value in series if run.status == "failed" and math.isfinite(value)]
    if not kept or not failed:
        return None
    low, high = min(kept), max(kept)
    room = 0.06 * (high - low)
    reached = max(failed) > high + 5 * room or min(failed) < low - 5 * room
    return [low - room, high + room] if reached and room else None


def _thinned(points: Sequence[Any]) -> list[Any]:
    """Evenly chosen, the last one among them."""
    stride = -(-len(points) // _POINTS)
    return [*points[:-1:stride], points[-1]]


def scatter(result: Comparison, name: str, told: Sequence[Column]) -> Figure | None:
    """Quality over cost, and the front of the finished runs. None where no run has the metric."""
    key = f"best/{name}"
    larger = larger_is_better(name, result.runs)
    rows = [row for row in result.rows if row.get(key) is not None]
    rows.sort(key=lambda row: row.value(key), reverse=larger)
    axes: dict[str, list] = {}
    for cost in COSTS:
        xs = [row.get(cost) for row in rows]
        if any(x is not None for x in xs):
            finished = [x if row.run.status == "finished" else None for x, row in zip(xs, rows, strict=True)]
            best = front(finished, [row.value(key) for row in rows], larger)
            axes[_COSTS[cost]] = [[x if i in best else None for i, x in enumerate(xs)], *([x] for x in xs)]
    if not axes:
        return None
    line: dict[str, Any] = {"type": "scatter", "mode": "lines", "connectgaps": True, "hoverinfo": "skip"}
    line |= {"y": [row.value(key) for row in rows], "name": "Pareto front"}
    line |= {"line": {"shape": "vh", "width": 1.4, "dash": "dot", "color": "#8a939c"}}
    data = [line, *(_dot(result, row, key, told) for row in rows)]
    layout = _layout(result, f"best {label(name)}") | {"margin": {"t": 20, "r": 30}}
    if span := _span([(row.run, row.value(key)) for row in rows]):
        layout["yaxis"]["range"] = span
    return Figure({"data": data, "layout": layout}, axes=axes, height=_height(result))


def _dot(result: Comparison, row: Row, key: str, told: Sequence[Column]) -> dict[str, Any]:
    at = result.rows.index(row)
    symbol = "circle" if row.run.status == "finished" else "circle-open"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(_legend(result, row)),
        "y": [row.value(key)],
        "cliponaxis": True,
        "marker": {"size": 11, "color": _colour(at, len(result.rows)), "symbol": symbol},
        "error_y": {"type": "data", "array": [row.spread(key)], "thickness": 1, "visible": len(row.runs) > 1},
        "hovertemplate": f"{_hover(row, told, result)}<br>%{{x:.4s}}: %{{y:.5g}}<extra></extra>",
    }


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


def _legend(result: Comparison, row: Row) -> str:
    """What was set, in a few words; the folder's name too where that says more than when it was, or tells apart."""
    texts = [_words(result, other) for other in result.rows]
    mine = texts[result.rows.index(row)]
    if mine and texts.count(mine) == 1 and _TIME.search(row.name):
        return mine
    return " · ".join(filter(None, [visible(row.name, 40), mine]))


def _words(result: Comparison, row: Row) -> str:
    """`muon, d_model=128`: a chosen yaml by its name, a number with its own."""
    short, words = short_names(result.settings), []
    for name in result.settings[:4]:
        if (value := row.run.settings.get(name)) is not None:
            words.append(setting(value) if "." not in name else f"{short[name]}={setting(value)}")
    return visible(", ".join(words), 60) + (f" ({len(row.runs)} seeds)" if len(row.runs) > 1 else "")


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
