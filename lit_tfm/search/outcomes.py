"""What became of each trial, from the study and the sweep's folder alone: for the table, the report and TensorBoard.

The study knows numbers, states, values and parameters; `trials/0007/trial.json` knows attempts and reasons, and the run
folder how far a trial is. Nothing here writes, and nothing needs torch, so that `--status` answers at once.
"""

import contextlib
import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial

from lit_tfm.search.holders import Holder
from lit_tfm.terminal import visible

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
FINISHED = ("complete", "pruned", "failed")
_TAIL = 4096  # bytes of metrics.csv that are read for its last line


@dataclass(frozen=True)
class Point:
    """A line of metrics.csv, or a report to the study."""

    step: int
    seconds: float
    tokens: int
    value: float


@dataclass(frozen=True)
class Outcome:
    """One trial. `values`: the objectives of a complete one; `reported`: what it told at its rungs, step -> value.

    `params` are Optuna's, `searched` what they are in the config: a number of heads, where a head size was drawn.
    """

    number: int
    state: str  # complete | pruned | failed | running | waiting
    folder: Path
    values: tuple[float, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    searched: dict[str, Any] = field(default_factory=dict)
    reported: dict[int, float] = field(default_factory=dict)
    reason: str = ""
    attempts: int = 1
    worker: str = ""
    interrupted: bool = False  # running, by the study, but its worker is gone: the sweep's command goes on with it
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def seconds(self) -> float | None:
        """From the first start to the end, interruptions included."""
        return (self.ended - self.started).total_seconds() if self.started and self.ended else None

    @property
    def runs(self) -> list[Path]:
        """The run folders: the trial's own, or one a seed."""
        return sorted(self.folder.glob("seed-*"), key=lambda path: (len(path.name), path.name)) or [self.folder]


def trial_folder(sweep: Path, number: int) -> Path:
    return sweep / "trials" / f"{number:04d}"


def outcomes(sweep: Path, study: optuna.Study) -> list[Outcome]:
    """All trials of the study, by number."""
    return [outcome(Path(sweep), trial) for trial in study.get_trials(deepcopy=False)]


def outcome(sweep: Path, trial: FrozenTrial) -> Outcome:
    state, holder = STATES[trial.state.name], Holder.of(trial.user_attrs)
    folder = trial_folder(sweep, trial.number)
    if holder is not None and not folder.is_dir() and Path(holder.folder).is_dir():
        folder = Path(holder.folder)  # of another worker of this machine, with a folder of its own
    record = read_json(folder / "trial.json") if state != "waiting" else {}
    attempts = record.get("attempts")
    return Outcome(
        number=trial.number,
        state=state,
        folder=folder,
        values=tuple(trial.values) if state == "complete" else (),
        params=dict(trial.params),
        searched=in_the_config(trial.params, record.get("overrides")),
        reported=dict(trial.intermediate_values),
        reason=visible(str(record.get("reason") or trial.user_attrs.get("reason") or "")),
        attempts=attempts if isinstance(attempts, int) else holder.attempt if holder else 1,
        worker=visible(str(record.get("worker") or (holder.worker if holder else ""))),
        interrupted=state == "running"
        and holder is not None
        and (holder.released or (holder.here and not holder.alive)),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
    )


def in_the_config(params: Mapping[str, Any], overrides: Any) -> dict[str, Any]:
    """{"model.n_heads/head_size": 64}, ["model.n_heads=4"] -> {"model.n_heads": 4}"""
    words = dict(str(word).split("=", 1) for word in overrides if "=" in str(word)) if overrides else {}
    found = {}
    for name, value in params.items():
        key, drawn, _ = name.partition("/")
        written = words.get(key, "") if drawn else ""
        found[key if written.isdigit() else name] = int(written) if written.isdigit() else value
    return found


def gone(holder: Holder) -> bool:
    """Whether a worker has certainly left its trial; of another machine's that can't be seen from here."""
    return holder.released or (holder.here and not holder.alive)


def read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file or it is not whole: a table of a sweep is no place to fail."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def listed(value: Any) -> list:
    """A single metric or direction as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def short_names(keys: list[str]) -> dict[str, str]:
    """{"model.d_model": "d_model"}: the last word of a key, or as many as tell it from the others."""
    names = {}
    for key in keys:
        words = key.split(".")
        for count in range(1, len(words) + 1):
            name = ".".join(words[-count:])
            if sum(other == name or other.endswith(f".{name}") for other in keys) == 1 or count == len(words):
                names[key] = name
                break
    return names


def number_text(value: Any) -> str:
    """A parameter or a value, as short as it stays readable."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return visible(str(value))
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 100_000 else str(value)
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    return f"{value:.4f}" if 0.1 <= size < 1000 else f"{value:,.1f}" if 1000 <= size < 1e6 else f"{value:.3g}"


def parameter_text(value: Any) -> str:
    """0.0123456 -> 0.01235; 0.5 -> 0.5."""
    return f"{value:.4g}" if isinstance(value, float) else number_text(value)


# ---- how far ---------------------------------------------------------------------------------------------------


def curve(run: Path, metric: str) -> list[Point]:
    """The metric over the run, in the order it was measured; [] where there is none."""
    points = []
    try:
        with open(run / "metrics.csv", newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.reader(file):
                if len(row) == 5 and row[3] == metric and (point := _point(row)):
                    points.append(point)
    except (OSError, csv.Error):
        return points
    return points


def last_line(run: Path) -> Point | None:
    """The last whole line of metrics.csv: how many steps, seconds and tokens a run has behind it."""
    try:
        with open(run / "metrics.csv", "rb") as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(0, size - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return None
    whole = text[: text.rfind("\n") + 1].splitlines()
    for line in reversed(whole):
        with contextlib.suppress(csv.Error):  # a zero byte, say
            row = next(csv.reader([line]), [])
            if len(row) == 5 and (point := _point(row)):
                return point
    return None


def _point(row: list[str]) -> Point | None:
    try:
        return Point(int(row[0]), float(row[1]), int(row[2]), float(row[4]))
    except ValueError:  # the head, or half a line
        return None


def share_done(trial: Outcome, seeds: int = 1) -> float | None:
    """Of a running trial's training, in [0, 1]; None where its folder does not say yet."""
    runs = [run for run in trial.runs if (run / "config.yaml").exists()]
    if not runs:
        return None
    shares = [_share(run) for run in runs]
    if shares[-1] is None and len(shares) == 1:
        return None
    return min(1.0, sum(share or 0.0 for share in shares) / max(seeds, len(runs)))


def _share(run: Path) -> float | None:
    if read_json(run / "summary.json").get("status") == "finished":
        return 1.0
    at = last_line(run)
    path = run / "config.yaml"
    try:
        bounds = _bounds(path, path.stat().st_mtime_ns)
    except OSError:
        return None
    if at is None or not bounds:
        return None
    flops = read_json(run / "summary.json").get("flops_per_token")
    done = {"steps": at.step, "seconds": at.seconds, "tokens": at.tokens}
    if isinstance(flops, (int, float)):
        done["flops"] = flops * at.tokens
    return max((done[unit] / bound for unit, bound in bounds.items() if unit in done), default=None)


@lru_cache(maxsize=1024)
def _bounds(config: Path, changed: int) -> dict[str, float]:
    """Where a run ends: {"steps": 100, "tokens": 2e6 ...}, from its config.yaml."""
    content = read_yaml(config)
    bounds = {}
    trainer = content.get("trainer")
    steps = trainer.get("max_steps") if isinstance(trainer, dict) else None
    if isinstance(steps, int) and steps > 0:
        bounds["steps"] = float(steps)
    return bounds | budget_bound(content.get("budget"))


def budget_bound(budget: Any) -> dict[str, float]:
    """ "2e6 tokens" -> {"tokens": 2e6}; "90s", 90 -> {"seconds": 90.0}; {} for null, auto and what is no budget."""
    found = re.fullmatch(r"\s*(\d[\d_,.]*(?:e[+-]?\d+)?)\s*([a-z]*)\s*", str(budget), re.IGNORECASE)
    if not found:
        return {}
    try:
        amount = float(found.group(1).replace("_", "").replace(",", ""))
    except ValueError:
        return {}
    unit = found.group(2).lower()
    seconds = {"": 1, "s": 1, "m": 60, "h": 3600}
    if unit in seconds:
        return {"seconds": amount * seconds[unit]} if amount > 0 else {}
    return {unit: amount} if unit in ("tokens", "flops") and amount > 0 else {}
