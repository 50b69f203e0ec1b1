"""Contours as a PNG. Optuna's own need scipy, which nothing else here does; matplotlib's triangulation does not."""

from itertools import combinations
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState


def draw(study: optuna.Study, params: list[str], target, name: str) -> np.ndarray:
    """One axis for each pair of `params`, over the complete trials that have both."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pairs = list(combinations(params, 2))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[len(pairs) :]:
        axis.set_axis_off()
    values = [target(trial) if target else trial.value for trial in complete]
    finite = [value for value in values if np.isfinite(value)]
    levels = np.linspace(min(finite), max(finite), 13) if finite and min(finite) < max(finite) else None
    for axis, (x, y) in zip(axes, pairs, strict=False):
        drawn = _pair(axis, complete, values, x, y, levels)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes.tolist(), label=name)
    return axes


def _pair(axis: Axes, complete: list[FrozenTrial], values: list[float], x: str, y: str, levels) -> Any:
    both = [i for i, t in enumerate(complete) if x in t.params and y in t.params and np.isfinite(values[i])]
    across, up = (_scaled(axis, side, [complete[i] for i in both], name) for side, name in (("x", x), ("y", y)))
    colour = np.array([values[i] for i in both])
    limits = {} if levels is None else {"vmin": levels[0], "vmax": levels[-1]}
    try:
        if levels is None:
            raise ValueError
        axis.tricontourf(across, up, colour, levels=levels, cmap="Blues_r")
    except (ValueError, RuntimeError):  # fewer than three points, or all of them on a line
        pass
    return axis.scatter(across, up, c=colour, cmap="Blues_r", edgecolors="black", linewidths=0.6, s=22, **limits)


def _scaled(axis: Axes, side: str, trials: list[FrozenTrial], name: str) -> np.ndarray:
    """Positions of the parameter's values: a choice by its place, what was searched by its logarithm likewise."""
    given = [trial.params[name] for trial in trials]
    setter = getattr(axis, f"set_{side}label")
    distribution = trials[0].distributions[name] if trials else None
    if distribution is None or not all(_is_number(value) for value in given):
        options = sorted({str(value) for value in given})
        getattr(axis, f"set_{side}ticks")(range(len(options)), options)
        setter(name)
        return np.array([options.index(str(value)) for value in given], dtype=float)
    positions = np.array(given, dtype=float)
    if _logarithmic(distribution):
        setter(f"{name} (log10)")
        return np.log10(positions)
    setter(name)
    return positions


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _logarithmic(distribution: BaseDistribution) -> bool:
    return bool(getattr(distribution, "log", False))
