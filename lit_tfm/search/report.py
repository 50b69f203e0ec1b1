"""report.html and report/*.png of a sweep: what was reached, how, what mattered, and what failed and why.

One file that needs no network and no other file. It can be written at any moment, also of a sweep in which nothing has
been completed: what can't be drawn says why. Imports no torch.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna

from lit_tfm.reports.page import Cell, Code, Heading, Section, Table, page
from lit_tfm.runs import write_text
from lit_tfm.search import pictures, status
from lit_tfm.search.best import command
from lit_tfm.search.learning_curves import Curve, curves
from lit_tfm.search.outcomes import (
    FINISHED,
    Outcome,
    outcomes,
    parameter_text,
    read_json,
    read_yaml,
)
from lit_tfm.terminal import visible

NOT_OF_A_RUN = ("parameters", "flops_per_token", "tokens_per_second", "seconds")  # objectives without a curve


@dataclass(frozen=True)
class Material:
    """What a report is made of, read once."""

    folder: Path
    plain: dict[str, Any]  # sweep.yaml
    trials: list[Outcome]
    ranked: list[Outcome]
    study: optuna.Study
    names: list[str]  # of the objectives
    metric: str  # whose curves are drawn
    drawn: list[Curve]


def write(folder: Path, study: optuna.Study, settings: Any = None) -> Path:
    """report.html and the PNGs in report/. `settings` is not needed: sweep.yaml in the folder says the same."""
    material = read(Path(folder), study)
    path = Path(folder) / "report.html"
    write_text(path, html(material))
    pictures.write_stills(path.with_name("report"), material.study, material.names, material.drawn, material.metric)
    return path


def read(folder: Path, study: optuna.Study) -> Material:
    plain, trials = read_yaml(folder / "sweep.yaml"), outcomes(folder, study)
    names, ranked = status.metric_names(study, plain), status.ranking(study, trials)
    metric = next((name for name in names if name not in NOT_OF_A_RUN), "val/loss")
    drawn = curves(trials, metric, ranked[0].number if ranked and len(names) == 1 else None)
    return Material(folder, plain, trials, ranked, snapshot(study), names, metric, drawn)


def html(given: Material) -> str:
    sections: list[Section] = [
        *_head(given.folder, given.study, given.plain, given.trials, given.ranked, given.names),
        *pictures.sections(given.study, given.names, given.drawn, given.metric),
        *_trials(given.trials, given.names),
        *_failures(given.trials),
        *_settings(given.folder),
    ]
    return page(f"Sweep {visible(given.study.study_name)}", sections)


def snapshot(study: optuna.Study) -> optuna.Study:
    """The study as it is now, in memory: every picture asks for all trials, and all are to show the same ones."""
    copy = optuna.create_study(study_name=study.study_name, directions=study.directions)
    copy.add_trials(study.get_trials(deepcopy=False))
    return copy


# ---- sections --------------------------------------------------------------------------------------------------


def _head(folder: Path, study, plain: dict, trials: list[Outcome], ranked: list[Outcome], names: list[str]) -> list:
    counts = Counter(trial.state for trial in trials)
    done = sum(counts[state] for state in FINISHED)
    wanted = f" of {plain['n_trials']}" if plain.get("n_trials") else ""
    told = ", ".join(f"{counts[state]} {state}" for state in (*FINISHED, "running") if counts[state]) or "none begun"
    parts: list[Section] = [
        f"{status.goal(study, plain)}. {done}{wanted} trials done: {told}; {status.time_text(trials, plain, _now())}.",
    ]
    if not ranked:
        return [*parts, "No trial has been completed, so there is no best one."]
    best = ranked[0]
    if len(names) > 1:
        parts.append(f"{len(ranked)} trials are beaten by no other in every objective:")
        rows = [
            [_numbered(trial), *map(_value, trial.values), *(_cell(trial.searched.get(key)) for key in best.searched)]
            for trial in ranked
        ]
        parts.append(Table(["trial", *names, *best.searched], rows))
        parts.append(f"Train the first of them, the best in {names[0]}, again:")
    else:
        parts.append(f"Best: {names[0]} {status.number_text(best.values[0])}, in trial {best.number}, with")
        parts.append(Table(["parameter", "value"], [[key, _cell(value)] for key, value in best.searched.items()]))
        parts.append("Train it again:")
    parts.append(Code(command(folder)))
    return parts


def _trials(trials: list[Outcome], names: list[str]) -> list[Section]:
    begun = [trial for trial in trials if trial.state != "waiting"]
    keys = list(dict.fromkeys(key for trial in begun for key in trial.searched))
    columns = ["trial", "state", *names, *keys, "tokens", "steps", "training s", "attempts", "took"]
    rows = []
    for trial in begun:
        summary = read_json(trial.runs[-1] / "summary.json")
        values = [*map(_value, trial.values), *[None] * (len(names) - len(trial.values))]
        if trial.state == "pruned" and trial.reported and len(names) == 1:
            last = trial.reported[max(trial.reported)]
            values = [Cell(status.number_text(last), last, "at the rung where it was pruned")]
        took = Cell(status.duration(trial.seconds), trial.seconds) if trial.seconds is not None else None
        rows.append(
            [
                _numbered(trial),
                trial.state,
                *values,
                *(_cell(trial.searched.get(key)) for key in keys),
                *(_number(summary.get(name)) for name in ("tokens", "steps", "seconds")),
                trial.attempts,
                took,
            ]
        )
    caption = "A click on a column's head sorts. Of pruned trials the value is the last that was reported."
    return [Heading("All trials"), Table(columns, rows, caption) if rows else "No trial has begun."]


def _failures(trials: list[Outcome]) -> list[Section]:
    failed = [trial for trial in trials if trial.state == "failed"]
    if not failed:
        return [Heading("Failures"), "No trial has failed."]
    rows = [
        [
            _numbered(trial),
            trial.reason or "no reason was recorded",
            trial.attempts,
            ", ".join(f"{key}={parameter_text(value)}" for key, value in trial.searched.items()),
        ]
        for trial in failed
    ]
    caption = "The traceback is in error.txt, all that was printed in log.txt of the trial's folder."
    return [Heading("Failures"), Table(["trial", "reason", "attempts", "parameters"], rows, caption)]


def _settings(folder: Path) -> list[Section]:
    parts: list[Section] = [Heading("Settings")]
    for name, what in (("command.txt", "Typed:"), ("sweep.yaml", "sweep.yaml:")):
        if (folder / name).is_file():
            parts += [what, Code((folder / name).read_text(encoding="utf-8", errors="replace").strip())]
    return parts


def _numbered(trial: Outcome) -> Cell:
    return Cell(str(trial.number), trial.number, "its folder", f"trials/{trial.folder.name}/")


def _value(reached: float) -> Cell:
    return Cell(status.number_text(reached), reached)


def _cell(value: Any) -> Cell | None:
    if value is None:
        return None
    ordered = value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    return Cell(parameter_text(value), ordered)


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _now() -> datetime:
    return datetime.now()
