"""Runs as they lie on the disk, whole or broken: what was set, what was reached, and the curves. No torch.

`read_run` never raises for a damaged folder: what can still be read is read, and `problems` says what could not.
"""

import csv
import glob
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_tfm.errors import UserError, nearest
from lit_tfm.reports.settings import flat, load_yaml, scalar

MARKS = ("config.yaml", "summary.json", "metrics.csv", "trial.json")  # one of them makes a folder a run's
COLUMNS = ("step", "seconds", "tokens", "name", "value")
AXES = ("steps", "tokens", "seconds", "flops")
# What a sweep calls the states of its trials.
_TRIAL_STATES = {"complete": "finished"}


@dataclass
class Point:
    step: int
    seconds: float
    tokens: int
    value: float


@dataclass
class Run:
    """One run. Numbers that the folder does not say are None; `settings` is flat: {"model.d_model": 128}."""

    path: Path
    status: str = "unknown"  # finished, running, stopped, failed, pruned, waiting
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # last values
    best: dict[str, float] = field(default_factory=dict)  # of the best validation, by the monitor
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    parameters: int | None = None
    flops_per_token: float | None = None
    monitor: str = "val/loss"
    mode: str = "min"
    seed: int | None = None
    data: dict[str, Any] = field(default_factory=dict)  # data.json
    reason: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def flops(self) -> float | None:
        """Operations of the whole training so far."""
        known = self.flops_per_token is not None and self.tokens is not None
        return self.flops_per_token * self.tokens if known else None

    @cached_property
    def points(self) -> dict[str, list[Point]]:
        """metrics.csv by name, in the order of steps, each step once: of what stands twice, the later line."""
        points, problem = read_points(self.path / "metrics.csv")
        if problem and problem not in self.problems:
            self.problems.append(problem)
        return points


# ---- finding -------------------------------------------------------------------------------------------------------


def find_runs(given: Iterable[str | Path] = ("outputs",)) -> list[Path]:
    """Folders of runs: those named, those a glob matches, and those inside a folder; sweeps' trials too; each once.

    Raises UserError for a name or glob that gives none.
    """
    found: dict[Path, Path] = {}
    for name in given:
        for path in _folders(str(name)):
            for run in _inside(path):
                found.setdefault(run.resolve(), run)
    return list(found.values())


def _folders(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if not path.exists() and glob.has_magic(name):
        matched = sorted(Path(found) for found in glob.glob(str(path), recursive=True) if Path(found).is_dir())
        runs = [folder for folder in matched if next(_inside(folder), None)]
        if not runs:
            why = f"matches {len(matched)} folders without a run" if matched else "matches nothing"
            raise UserError(f"{name}: {why}; a glob of run folders is e.g. 'outputs/*/*'")
        return runs
    if not path.exists():
        siblings = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"{name}: no such folder{nearest(str(path), siblings)}; name run folders, a folder of runs, or a glob"
        )
    if not path.is_dir():
        raise UserError(f"{name}: a file; name the run's folder")
    if next(_inside(path), None) is None:
        raise UserError(
            f"{name}: no run folder, and none inside it (a run has a config.yaml); "
            "train one, e.g. python -m lit_tfm.train experiment=bert_small"
        )
    return [path]


def _inside(folder: Path):
    """Run folders at or below `folder`; nothing is looked for inside a run. A trial of several seeds is not a run."""
    for place, folders, files in os.walk(folder):
        seeds = any(name.startswith("seed-") for name in folders)
        if not (seeds and "config.yaml" not in files) and any(mark in files for mark in MARKS):
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


# ---- reading -------------------------------------------------------------------------------------------------------


def read_run(path: str | Path) -> Run:
    run = Run(Path(path))
    trial = _json(run, "trial.json") if (run.path / "trial.json").exists() else {}
    run.settings = _settings(run, trial)
    run.data = _json(run, "data.json") if (run.path / "data.json").exists() else {}
    _summary(run)
    _trial(run, trial)
    if isinstance(run.settings.get("seed"), int):
        run.seed = run.settings["seed"]
    if run.flops_per_token is None:
        run.flops_per_token = _flops_measured(run)
    return run


def _settings(run: Run, trial: dict[str, Any]) -> dict[str, Any]:
    """config.yaml's; of a trial that never came to have one, what it was to be given."""
    try:
        return flat(load_yaml(run.path / "config.yaml"))
    except FileNotFoundError:
        if not trial:
            run.problems.append("no config.yaml: its settings are not known")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        run.problems.append(f"config.yaml can't be read ({_reason(error)}): its settings are not known")
    overrides = trial.get("overrides")
    typed = [str(text).partition("=") for text in overrides] if isinstance(overrides, list) else []
    params = {key: scalar(value) for key, _, value in typed} or trial.get("params")
    return flat(params) if isinstance(params, dict) else {}


def _json(run: Run, name: str) -> dict[str, Any]:
    try:
        content = json.loads((run.path / name).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        run.problems.append(f"{name} can't be read (it holds no table)")
    except (OSError, ValueError, RecursionError) as error:
        run.problems.append(f"{name} can't be read ({_reason(error)})")
    return {}


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:90]


def _summary(run: Run) -> None:
    missing = not (run.path / "summary.json").exists()
    summary = {} if missing else _json(run, "summary.json")
    for name in ("status", "monitor", "mode", "reason"):
        if isinstance(summary.get(name), str):
            setattr(run, name, summary[name])
    for name in ("steps", "tokens", "seconds", "parameters", "flops_per_token", "seed"):
        setattr(run, name, number(summary.get(name)))
    run.metrics, run.best = numbers(summary.get("metrics")), numbers(summary.get("best"))
    if not summary and (run.path / "metrics.csv").exists():
        _from_points(run)
        why = "no summary.json" if missing else "summary.json can't be read"
        run.problems = [p for p in run.problems if not p.startswith("summary.json")]
        run.problems.append(f"{why}: last values are metrics.csv's, the best one is its smallest val/loss")
    elif missing and not (run.path / "trial.json").exists():
        run.problems.append("no summary.json and no metrics.csv: nothing is known of how far it came")


def _from_points(run: Run) -> None:
    """What summary.json would have said, as far as metrics.csv goes."""
    points = {name: series for name, series in run.points.items() if not name.startswith("speed/")}
    run.metrics = {name: series[-1].value for name, series in points.items()}
    every = [point for series in points.values() for point in series]
    if every:
        last = max(every, key=lambda point: point.step)
        run.steps, run.tokens, run.seconds = last.step, last.tokens, last.seconds
    if losses := points.get("val/loss"):
        step = min(losses, key=lambda point: point.value).step
        at = {name: point.value for name, series in points.items() for point in series if point.step == step}
        run.best = {**at, "step": step}


def _trial(run: Run, trial: dict[str, Any]) -> None:
    """A sweep knows more of its trial than the trial itself: that it was pruned, or never came to write a summary."""
    state = trial.get("state")
    if isinstance(state, str) and (run.status in ("unknown", "running") or state == "pruned"):
        run.status = _TRIAL_STATES.get(state, state)
    if isinstance(trial.get("reason"), str) and not run.reason:
        run.reason = trial["reason"]


def _flops_measured(run: Run) -> float | None:
    """For runs older than summary.json's figure: the ratio of two speeds that metrics.csv has."""
    try:
        with open(run.path / "metrics.csv", encoding="utf-8", errors="replace") as file:
            latest: dict[str, float] = {}
            for line in file:
                if ",speed/t" in line:
                    *_, name, value = line.strip().split(",")
                    latest[name] = float(value)
                if {"speed/tflops", "speed/tokens_per_second"} <= latest.keys():
                    processes = [run.settings.get(f"trainer.{key}") for key in ("devices", "num_nodes")]
                    world = math.prod(count if isinstance(count, int) else 1 for count in processes)
                    return latest["speed/tflops"] * 1e12 * world / latest["speed/tokens_per_second"]
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return None


def number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def numbers(given: Any) -> dict[str, float]:
    given = given if isinstance(given, dict) else {}
    return {str(name): value for name, value in given.items() if number(value) is not None}


# ---- curves --------------------------------------------------------------------------------------------------------


def read_points(path: Path) -> tuple[dict[str, list[Point]], str]:
    """Points by name, and what could not be read in words ("" where all could)."""
    series: dict[str, dict[int, Point]] = {}
    torn = 0
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.reader(line.replace("\0", "?") for line in file)
            for row in rows:
                if tuple(row) == COLUMNS or not row:
                    continue
                try:
                    step, seconds, tokens, name, value = row
                    point = Point(int(step), float(seconds), int(tokens), float(value))
                except ValueError:
                    torn += 1
                    continue
                series.setdefault(name, {})[point.step] = point
    except FileNotFoundError:
        return {}, "no metrics.csv: it has no curves"
    except (OSError, csv.Error) as error:
        return {}, f"metrics.csv can't be read ({_reason(error)})"
    points = {name: sorted(at.values(), key=lambda point: point.step) for name, at in series.items()}
    return points, f"metrics.csv: {torn} lines can't be read and are left out" if torn else ""


def curves(run: Run | str | Path, name: str, x: str = "steps") -> tuple[list[float], list[float]]:
    """The places on the axis (steps, tokens, seconds or flops) and the values of a metric: `curves(run, "val/loss")`.

    Raises UserError for a metric that the run did not log, and for an axis that it can't tell.
    """
    run = run if isinstance(run, Run) else read_run(run)
    if x not in AXES:
        raise UserError(f"x={x}: no such axis{nearest(x, AXES)}; there are {', '.join(AXES)}")
    if name not in run.points:
        there = ", ".join(sorted(run.points)) or "nothing"
        raise UserError(f"{run.path}: it logged no {name}{nearest(name, run.points)}; there is {there}")
    if x == "flops" and run.flops_per_token is None:
        raise UserError(f"{run.path}: its FLOPs a token are not known; type x='tokens'")
    points = run.points[name]
    return [place(run, point, x) for point in points], [point.value for point in points]


def place(run: Run, point: Point, x: str) -> float | None:
    if x == "flops":
        return point.tokens * run.flops_per_token if run.flops_per_token is not None else None
    return {"steps": point.step, "tokens": point.tokens, "seconds": point.seconds}[x]
