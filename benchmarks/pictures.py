"""The pictures of README, drawn by the benchmarks whose figures they show."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from curves import Curve
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import Ratio

PICTURES = Path(__file__).parents[1] / "docs" / "images"
OURS, THEIRS = "tab:orange", "tab:blue"
FAR = 30


def falling(name: str, curves: Mapping[str, Sequence[Curve]], target: float, title: str, value: str) -> Path:
    """docs/images/<name>.png, a loss against training time: every seed a thin line, the target dashed.

    The peer's curves come first. Time is logarithmic where one side takes `FAR` times as long as the other: linear, the
    shorter curves would be a vertical line.
    """
    figure, axes = plt.subplots(figsize=(7, 4), dpi=150)
    ends = [run[-1].seconds for runs in curves.values() for run in runs]
    far = max(ends) > FAR * min(ends)
    if far:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    for color, (label, runs) in zip((THEIRS, OURS), curves.items(), strict=False):
        for index, run in enumerate(runs):
            points = [p for p in run if p.seconds > 0 or not far]
            style = {"color": color, "linewidth": 1.0, "marker": ".", "label": label if index == 0 else None}
            axes.plot([p.seconds for p in points], [p.value for p in points], **style)
    axes.axhline(target, color="gray", linestyle="--", linewidth=0.8, label=f"target {target:.3f}")
    axes.set(title=title, xlabel="training seconds", ylabel=value)
    axes.legend(frameon=False)
    return _saved(name, figure, axes)


def ratios(name: str, ours: Mapping[str, Ratio], goals: Mapping[str, float], title: str, peer: str) -> Path:
    """docs/images/<name>.png, our figure over the peer's: bars with the spread of the rounds, the goal a short line."""
    figure, axes = plt.subplots(figsize=(7, 4), dpi=150)
    for place, (label, ratio) in enumerate(ours.items()):
        spread = [[max(0.0, ratio.median - ratio.low)], [max(0.0, ratio.high - ratio.median)]]
        axes.bar(place, ratio.median, width=0.5, color=OURS, yerr=spread, capsize=4)
        axes.annotate(f"{ratio.median:.2f}", (place, 0.05), ha="center", color="white")
        line = {"color": "black", "linewidth": 1.2, "label": "goal" if place == 0 else None}
        axes.hlines(goals[label], place - 0.35, place + 0.35, **line)
    axes.axhline(1.0, color=THEIRS, linestyle="--", linewidth=0.8, label=peer)
    axes.set(title=title, ylabel=f"lit_tfm / {peer}", xticks=range(len(ours)), xticklabels=list(ours))
    axes.legend(frameon=False)
    return _saved(name, figure, axes)


def _saved(name: str, figure: Figure, axes: Axes) -> Path:
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    PICTURES.mkdir(parents=True, exist_ok=True)
    file = PICTURES / f"{name}.png"
    figure.savefig(file)
    plt.close(figure)
    return file
