"""Whether two runs are the same to the last bit: checkpoints, metrics.csv, TensorBoard's curves.

Only what a clock measures may differ.
"""

from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_tfm.callbacks.checkpoint_files import read

CLOCK = {"seconds", "_ran"}


def assert_identical(expected: Path, found: Path, but_for_step: int | None = None) -> None:
    """`but_for_step`: what one of the two measured once more, where it ended for a while, is left out."""
    one, two = (read(f / "checkpoints" / "last.ckpt") for f in (expected, found))
    ignored = CLOCK if but_for_step is None else {*CLOCK, "ranking", "metrics", "best"}
    assert differences(one, two, ignored) == []
    assert rows(found, but_for_step) == rows(expected, but_for_step)
    assert curves(found, but_for_step) == curves(expected, but_for_step)


def differences(one: Any, two: Any, ignored: set[str], path: str = "") -> list[str]:
    """Places where two checkpoints differ in any bit."""
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [path]
    if isinstance(one, (list, tuple)):
        one, two = dict(enumerate(one)), dict(enumerate(two))
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [f"{path}: {sorted(map(str, one.keys() ^ two.keys()))} in one only"]
        kept = one.keys() - ignored
        return [place for key in kept for place in differences(one[key], two[key], ignored, f"{path}/{key}")]
    return [] if one == two or (one != one and two != two) else [f"{path}: {one} and {two}"]


def rows(run: Path, but_for_step: int | None = None) -> list[tuple[str, ...]]:
    """metrics.csv without its clock: (step, tokens, name, value)."""
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [(step, tokens, name, value) for step, _, tokens, name, value in lines if not name.startswith("speed/")]
    return [row for row in kept if row[0] != str(but_for_step)]


def curves(run: Path, but_for_step: int | None = None) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's points as it shows them: purged ones are gone, none stands twice."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    shown = {}
    for tag in events.Tags()["scalars"]:
        if tag.startswith(("speed/", "hp/")):
            continue
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        shown[tag] = [point for point in points if point[0] != but_for_step]
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), (tag, steps)
    return shown
