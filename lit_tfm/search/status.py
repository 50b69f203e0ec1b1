"""The table of a sweep, live or afterwards: trials, best so far, who is running and how far, time, failures.

It is made of the study and the sweep's folder alone, so that `--status` prints it in any terminal; and it imports no
torch, so that it does so at once. 80 columns are enough.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lit_tfm.search.outcomes import (
    FINISHED,
    Outcome,
    last_line,
    listed,
    number_text,
    outcomes,
    parameter_text,
    read_yaml,
    share_done,
    short_names,
)
from lit_tfm.terminal import visible

STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan", "waiting": "dim"}
BEST_SHOWN, FAILURES_SHOWN = 5, 5


def table(folder: Path, study: optuna.Study, now: datetime | None = None) -> RenderableType:
    """The state of the sweep in `folder`, whose trials are in `study`."""
    folder, now = Path(folder), now or datetime.now()
    settings = read_yaml(folder / "sweep.yaml")
    trials = outcomes(folder, study)
    names = short_names(list(dict.fromkeys(key for trial in trials for key in trial.searched)))
    parts: list[RenderableType] = [_head(study, settings, trials, names, now)]
    running = [trial for trial in trials if trial.state == "running"]
    if running:
        parts += ["", _running(running, settings, names, now)]
    if ranked := ranking(study, trials):
        parts += ["", _best(study, settings, ranked, names)]
    if failed := [trial for trial in trials if trial.state == "failed"]:
        parts += ["", _failures(failed)]
    return Group(*parts)


# ---- the parts -------------------------------------------------------------------------------------------------


def _head(study, settings: dict, trials: list[Outcome], names: dict[str, str], now: datetime) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=False)
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column()
    grid.add_row("sweep", Text(f"{visible(study.study_name)}: {goal(study, settings)}"))
    grid.add_row("trials", _counts(trials, settings.get("n_trials")))
    if done := wanted_share(trials, settings.get("n_trials")):
        grid.add_row("", ProgressBar(total=1.0, completed=done, width=40))
    ranked = ranking(study, trials)
    if len(study.directions) > 1:
        if ranked:
            grid.add_row("best", Text(f"{len(ranked)} trials that no other beats in every objective"))
    elif ranked:
        best = ranked[0]
        where = f" in trial {best.number}: {params_text(best.searched, names)}"
        grid.add_row("best", Text.assemble((number_text(best.values[0]), "bold"), where))
    elif any(trial.state in FINISHED for trial in trials):
        grid.add_row("best", Text("none yet: no trial has been completed"))
    grid.add_row("time", Text(time_text(trials, settings, now)))
    return grid


def goal(study: optuna.Study, settings: dict) -> str:
    """ "val/loss, the lower the better"."""
    texts = []
    for name, direction in zip(metric_names(study, settings), study.directions, strict=True):
        texts.append(f"{name}, the {'higher' if direction == StudyDirection.MAXIMIZE else 'lower'} the better")
    return "; ".join(texts)


def metric_names(study: optuna.Study, settings: dict[str, Any]) -> list[str]:
    """What the objectives are called, in the study's order."""
    given = [visible(str(name)) for name in listed(settings.get("metric")) if name]
    given = given or list(study.metric_names or [])
    return given if len(given) == len(study.directions) else [f"objective {i}" for i in range(len(study.directions))]


def _counts(trials: list[Outcome], wanted: int | None) -> Text:
    counts = Counter(trial.state for trial in trials)
    done = sum(counts[state] for state in FINISHED)
    text = Text(f"{done} of {wanted} done: " if wanted else f"{done} done: ")
    parts = [(f"{counts[state]} {state}", STYLES[state]) for state in FINISHED]
    parts += [(f"{counts['running']} running", STYLES["running"])] if counts["running"] else []
    if wanted and (left := wanted - done - counts["running"]) > 0:
        parts.append((f"{left} to come", STYLES["waiting"]))
    for place, (part, style) in enumerate(parts):
        text.append(", " if place else "").append(part, style=style)
    return text


def wanted_share(trials: list[Outcome], wanted: int | None) -> float | None:
    done = sum(trial.state in FINISHED for trial in trials)
    return min(1.0, done / wanted) if wanted else None


def _running(running: list[Outcome], settings: dict, names: dict[str, str], now: datetime) -> Table:
    made = _table("running", ("trial", "parameters", "done", "rung", "last", "for"), right=(0, 2, 3, 4, 5))
    rungs, seeds = settings.get("rungs"), settings.get("seeds")
    for trial in running:
        share = share_done(trial, len(seeds) if isinstance(seeds, list) else 1)
        at = last_line(trial.runs[-1])
        passed = f"{len(trial.reported)} of {len(rungs)}" if isinstance(rungs, list) else str(len(trial.reported))
        again = f" (attempt {trial.attempts})" if trial.attempts > 1 else ""
        again += " (interrupted; the same command goes on with it)" if trial.interrupted else ""
        made.add_row(
            str(trial.number),
            Text(params_text(trial.searched, names) + again),
            f"{100 * share:.0f} %" if share is not None else "started" if at is None else f"{at.step:,} steps",
            passed,
            number_text(trial.reported[max(trial.reported)]) if trial.reported else "",
            duration((now - trial.started).total_seconds()) if trial.started and not trial.interrupted else "",
        )
    return made


def _best(study, settings: dict, ranked: list[Outcome], names: dict[str, str]) -> Table:
    metrics = metric_names(study, settings)
    title = "best" if len(metrics) == 1 else "not beaten in every objective"
    made = _table(title, ("trial", *metrics, "parameters", "took"), right=(0, *range(1, len(metrics) + 1), -1))
    for trial in ranked[:BEST_SHOWN]:
        took = duration(trial.seconds) if trial.seconds is not None else ""
        made.add_row(str(trial.number), *map(number_text, trial.values), Text(params_text(trial.searched, names)), took)
    if len(ranked) > BEST_SHOWN:
        made.caption = f"and {len(ranked) - BEST_SHOWN} more"
        made.caption_justify = "left"
    return made


def _failures(failed: list[Outcome]) -> Table:
    """By reason, the latest first: a hundred trials may have failed for one."""
    made = _table("failed", ("trials", "last", "reason"), right=(0, 1))
    reasons: dict[str, list[int]] = {}
    for trial in reversed(failed):
        reasons.setdefault(trial.reason or "no reason was recorded", []).append(trial.number)
    for reason, numbers in list(reasons.items())[:FAILURES_SHOWN]:
        made.add_row(str(len(numbers)), str(numbers[0]), Text(visible(reason, 200)))
    if len(reasons) > FAILURES_SHOWN:
        made.caption = f"and {len(reasons) - FAILURES_SHOWN} other reasons; the report lists all"
        made.caption_justify = "left"
    return made


def _table(title: str, columns: Sequence[str], right: Sequence[int]) -> Table:
    made = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    made.title_justify, made.title_style = "left", "bold cyan"
    to_the_right = {place % len(columns) for place in right}
    for place, column in enumerate(columns):
        numeric = place in to_the_right
        made.add_column(Text(column), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return made


# ---- figures ---------------------------------------------------------------------------------------------------


def ranking(study: optuna.Study, trials: list[Outcome]) -> list[Outcome]:
    """Complete trials, the best first; with several objectives those on the Pareto front, by the first of them."""
    complete = [trial for trial in trials if trial.state == "complete"]
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0
    if len(study.directions) > 1:
        front = {trial.number for trial in study.best_trials} if complete else set()
        complete = [trial for trial in complete if trial.number in front]
    return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))


def time_text(trials: list[Outcome], settings: dict, now: datetime) -> str:
    """ "12 min since the first trial began, about 8 min left"."""
    starts = [trial.started for trial in trials if trial.started]
    if not starts:
        return "no trial has begun"
    active = any(trial.state == "running" and not trial.interrupted for trial in trials)
    ends = [trial.ended for trial in trials if trial.ended]
    used = ((now if active or not ends else max(ends)) - min(starts)).total_seconds()
    text = f"{duration(used)} since the first trial began" if active else f"{duration(used)} from first to last"
    left = time_left(trials, settings, now)
    if not left:
        return text
    timeout = settings.get("timeout")
    limit = f"; timeout {duration(timeout)}" if isinstance(timeout, (int, float)) else ""
    return f"{text}, about {duration(left)} left{limit}"


def time_left(trials: list[Outcome], settings: dict, now: datetime) -> float | None:
    """Seconds until n_trials are done, when the others take as long as those that ended; None before the first has."""
    took = [trial.seconds for trial in trials if trial.state in FINISHED and trial.seconds is not None]
    wanted = settings.get("n_trials")
    if not took or not isinstance(wanted, int):
        return None
    # Resumed trials count the time they lay idle: a few of them must not make the rest look long.
    typical = min(statistics.fmean(took), 2 * statistics.median(took))
    running = [trial for trial in trials if trial.state == "running" and not trial.interrupted]
    open_trials = max(0, wanted - sum(trial.state in FINISHED for trial in trials))
    spent = sum(min(typical, (now - trial.started).total_seconds()) for trial in running if trial.started)
    workers = max(len(running), settings.get("workers") if isinstance(settings.get("workers"), int) else 1, 1)
    return max(0.0, open_trials * typical - spent) / max(1, min(workers, open_trials))


def params_text(params: dict[str, Any], names: dict[str, str]) -> str:
    return "  ".join(f"{visible(names.get(key, key))}={parameter_text(value)}" for key, value in params.items())


def duration(seconds: float) -> str:
    """As a person says it: 45 s, 12 min, 1 h 20 min, 2 d 3 h."""
    seconds = max(0, round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
