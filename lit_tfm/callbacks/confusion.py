"""The confusion matrix as a picture in TensorBoard, after every validation of a classification task.

Letters: L labels.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from lightning import Callback, Trainer

from lit_tfm.callbacks.tensorboard import boards
from lit_tfm.tasks.base import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WRITTEN = 20  # labels up to which the cells hold numbers; beyond, colours only


class ConfusionPicture(Callback):
    """Draws the matrix a task keeps as `confusion[stage]`; does nothing without such a task or without TensorBoard."""

    def on_validation_end(self, trainer: Trainer, pl_module: Task) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: Task) -> None:
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, task: Task, stage: str) -> None:
        matrix = getattr(task, "confusion", {}).get(stage)
        if matrix is None or not trainer.is_global_zero:
            return
        for logger in boards(trainer):
            with task.progress.paused():
                figure = draw(matrix.numpy(), task.facts.labels)
                logger.experiment.add_figure(f"pictures/confusion_{stage}", figure, trainer.global_step)


def draw(matrix: np.ndarray, labels: tuple[str, ...]) -> "Figure":
    """Counts (L, L), rows true and columns predicted, or one small matrix a label, (L, 2, 2)."""
    if matrix.ndim == 3:
        return _draw_each(matrix, labels)
    size = min(14.0, 3.0 + 0.55 * len(labels))
    figure = _figure(size + 1.0, size)
    _panel(figure.add_subplot(), matrix, list(labels), written=len(labels) <= MOST_WRITTEN)
    return figure


def _draw_each(matrices: np.ndarray, labels: tuple[str, ...]) -> "Figure":
    columns = min(4, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = _figure(2.6 * columns, 2.6 * rows)
    for place, (matrix, label) in enumerate(zip(matrices, labels, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        _panel(axes, matrix, ["no", "yes"], written=True)
        axes.set_title(short(label), fontsize=9)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # optional: a heavy package, needed for the first picture alone

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def _panel(axes: "Axes", matrix: np.ndarray, labels: list[str], written: bool) -> None:
    """Colour is the share of the row: how the examples of a true label were spread, however many there are."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    names = [short(label) for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if not written:
        return
    for row, column in np.ndindex(matrix.shape):
        share, count = shares[row, column], int(matrix[row, column])
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{count}\n{share:.0%}", ha="center", va="center", fontsize=7, color=colour)


def short(label: str, most: int = 24) -> str:
    """A label that fits an axis; `$` would open a formula."""
    label = label if len(label) <= most else label[: most - 1] + "…"
    return label.replace("$", r"\$")
