"""The names of a run's checkpoints when it goes on: last.ckpt is where it begins, best.ckpt what its ranking says.

A kill may have come between a checkpoint and its further names; or the run goes on from an older checkpoint, and what
was saved after that belongs to a future that was given up. step-N.ckpt stay all the same: they were asked for.
"""

import os
from pathlib import Path

from lit_tfm.callbacks.checkpoint_files import (
    LAST,
    PREVIOUS,
    check,
    keep_as,
    link,
    partial,
    read,
    save_weights,
    step_of,
    step_of_weights,
)
from lit_tfm.callbacks.replacing import put, remove, sync_folder

Best = list[tuple[str, int]]  # (name, step), the best first


def settle(folder: Path, best: Best, resumed: Path, asked: str | None = None) -> list[int]:
    """Make the names true for a run that goes on from `resumed`, ranked as `best`; the steps of that which are left.

    `asked`: the further name it is to have, where a checkpoint every so many steps was asked for.

    Nothing here replaces or removes the checkpoint that is gone on with, or the last name of it: a kill at any instant
    leaves it whole. The ranking is part of it, so it is on the disk before the files it speaks of have their names.
    """
    step = step_of(resumed)
    _take_over(resumed, folder / LAST)
    _restore(folder, best, resumed)
    kept = _close_up(folder, best)
    for path in [folder / PREVIOUS, folder / "best.ckpt", *folder.glob("best-[0-9]*.ckpt")]:
        if (step_of(path) or 0) > step:
            remove(path.with_suffix(".safetensors"))
            remove(path)
    if asked and step_of(folder / asked) != step:
        keep_as(folder / LAST, asked, weights=False)
    for name, at in [*kept, (LAST, step)]:
        path = folder / name
        if step_of_weights(path.with_suffix(".safetensors")) != at:
            save_weights(path, read(path)["state_dict"], at)
    for path in [*folder.glob(".*.old"), *folder.glob(".kept-*")]:
        remove(path)
    return [at for _, at in kept]


def _take_over(resumed: Path, last: Path) -> None:
    """From here on it is the newest, whatever lies there, also by its time: `newest` compares that with step-N's.

    What was last.ckpt does not become previous.ckpt: it is broken, or further than the run is now.
    """
    if last.exists() and last.samefile(resumed):
        os.utime(last)
        return
    with partial(last) as temporary:
        remove(temporary)
        link(resumed, temporary)
        os.utime(temporary)
        put(temporary, last)
    sync_folder(last.parent)


def _restore(folder: Path, best: Best, resumed: Path) -> None:
    """Give each of the best its name, where the file of its step has another."""
    missing = [(name, step) for name, step in best if step_of(folder / name) != step]
    files = [*folder.glob("*.ckpt*"), resumed] if missing else []
    there = {step: path for path in files if (step := step_of(path)) is not None}
    missing = [(name, step) for name, step in missing if step in there and check(there[step]) is None]
    for name, step in missing:  # all of them before the first name changes hands
        kept = folder / f".kept-{name}"
        if there[step] != kept:
            remove(kept)
            link(there[step], kept)
    for name, _ in missing:
        put(folder / f".kept-{name}", folder / name)


def _close_up(folder: Path, best: Best) -> Best:
    """Those whose file is there, under the first names: where one is lost, those behind it move up."""
    there = [(name, step) for name, step in best if step_of(folder / name) == step]
    kept = [(name, step) for (name, _), (_, step) in zip(best, there, strict=False)]
    for (old, _), (new, _) in zip(there, kept, strict=True):
        for path in (folder / old, (folder / old).with_suffix(".safetensors")):
            if old != new and path.exists():
                put(path, (folder / new).with_suffix(path.suffix))
    return kept
