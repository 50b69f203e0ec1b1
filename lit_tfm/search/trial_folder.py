"""What a sweep keeps in a trial's folder, beside the run: trial.json, log.txt, error.txt, and a lock.

The lock is the kernel's: the worker and every process of the trial share it, and it is gone when they are. Who takes
a trial over must have had it alone first, so two attempts never write into one folder.
"""

import os
import shutil
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from lit_tfm.holding import Hold, birth, machine, take_at_once
from lit_tfm.runs import BESIDE, RunFolder
from lit_tfm.search.outcomes import read_json

LINGERING = 2.0  # seconds a trial's process is given to notice that its worker died
PATIENCE = 30.0


def take(folder: Path) -> Hold | None:
    """The folder for this worker, when nobody else holds it any more; None where somebody goes on doing so."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    while (hold := take_at_once(folder)) is None:
        waited = time.monotonic() - began
        if waited > LINGERING:
            _end_recorded(folder)
        if waited > PATIENCE:
            return None
        time.sleep(0.05)
    hold.joined = True  # the file stays: its time is the trial's sign of life
    return hold


def _end_recorded(folder: Path) -> None:
    """Kill the process that trial.json names, if it is of this machine and still that one."""
    record = read_json(folder / "trial.json")
    pid = record.get("pid")
    if record.get("machine") == machine() and pid and birth(pid) == record.get("birth") is not None:
        end_group(pid)


def end_group(pid: int) -> None:
    """A trial's process and what it started; torchrun's ranks notice by themselves (attempt.Line)."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def prepare(folder: Path) -> Path | None:
    """Make the run's folder ready: itself where it has a checkpoint to go on from, or None where it starts anew.

    What an attempt left that never came to a checkpoint is of no use to the next, and two runs' metrics must not mix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    # Any: killed in the middle of a save, only previous.ckpt has its name.
    if any((run / "checkpoints").glob("[!.]*.ckpt")) and (run / "config.yaml").exists():
        return folder
    for entry in folder.iterdir():
        if entry.name not in BESIDE:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return None


def tail(path: Path, start: int = 0, size: int = 20_000) -> str:
    """The end of a log, of what was written from byte `start` on."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - size))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def write_record(folder: Path, **values: Any) -> None:
    """Replace these keys of trial.json, in one atomic write."""
    RunFolder(folder).write_json("trial.json", {**read_json(folder / "trial.json"), **values})


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
