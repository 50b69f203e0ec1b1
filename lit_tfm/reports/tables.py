"""Runs side by side: what tells them apart, and what they reached. Seeds of one setting become one row.

    rows = runs_table(["outputs"])            # a dict a run, for notebooks; to_frame(rows) makes it pandas'

Names of columns, in `--sort`, `--where` and the files: `run status steps tokens seconds parameters flops
flops_per_token tokens_per_second`; a setting by its name in the config (`optimizer.lr`), a chosen yaml by its group
(`optimizer`); a metric by its name for the last value (`val/loss`), under `best/` for that of the best validation.
"""

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_tfm.errors import UserError
from lit_tfm.reports.reading import Run, find_runs, number, read_run
from lit_tfm.reports.settings import UNSET, differing
from lit_tfm.reports.where import Where, resolve, unknown

FIGURES = ("steps", "tokens", "seconds", "parameters", "flops", "flops_per_token", "tokens_per_second")
COSTS = ("tokens", "seconds", "parameters", "flops")  # what the table shows of them
LARGER_IS_BETTER = {
    *("accuracy", "precision", "recall", "mcc", "f1", "macro_f1", "micro_f1", "subset_accuracy", "exact_match"),
    *("bleu", "chrf", "rouge_l", "tokens_per_second", "auc"),
}


@dataclass
class Row:
    """One run, or finished runs that differ in nothing but the seed."""

    runs: list[Run]
    name: str = ""

    @property
    def run(self) -> Run:
        return self.runs[0]

    def value(self, key: str) -> Any:
        """The mean over the seeds where it is a number. Raises KeyError where the row has none."""
        if key == "run":
            return self.name
        if key == "seed":
            seeds = [str(run.seed) for run in self.runs]
            return self.run.seed if len(seeds) == 1 else ", ".join(seeds)
        values = [value_of(run, key) for run in self.runs]
        if len(values) == 1 or any(number(value) is None for value in values):
            return values[0]
        return values[0] if len(set(values)) == 1 else statistics.fmean(values)

    def spread(self, key: str) -> float | None:
        """Standard deviation over the seeds (of a sample: n - 1); None for one run, or what is no number."""
        if len(self.runs) == 1 or key in ("seed", "run") or key in self.run.settings:
            return None
        try:
            values = [value_of(run, key) for run in self.runs]
        except KeyError:
            return None
        return statistics.stdev(values) if all(number(value) is not None for value in values) else None

    def get(self, key: str) -> Any:
        try:
            return self.value(key)
        except KeyError:
            return None


@dataclass
class Comparison:
    """Rows, what tells them apart, and what a reader has to be told besides."""

    rows: list[Row]
    root: str = ""  # what all the names start with, left out of them
    settings: list[str] = field(default_factory=list)  # those that differ
    metrics: list[str] = field(default_factory=list)  # all that some run has
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @property
    def monitors(self) -> list[str]:
        return list(dict.fromkeys(run.monitor for run in self.runs if run.monitor in self.metrics))

    def headline(self) -> list[str]:
        """What a first look needs: the monitors, the loss, and the same of the test split."""
        leaves = dict.fromkeys([*(name.partition("/")[2] for name in self.monitors), "loss"])
        return [name for stage in ("val", "test") for leaf in leaves if (name := f"{stage}/{leaf}") in self.metrics]


def value_of(run: Run, key: str) -> Any:
    """Raises KeyError where the run has no such value."""
    if key == "status":
        return run.status
    if key == "tokens_per_second":
        value = run.tokens / run.seconds if run.tokens and run.seconds else None
    elif key in FIGURES:
        value = getattr(run, key)
    elif key.startswith("best/"):
        value = run.best.get(key.removeprefix("best/"))
    elif key in run.settings:
        return run.settings[key]
    else:
        value = run.metrics.get(key)
    if value is None:
        raise KeyError(key)
    return value


# ---- making it -----------------------------------------------------------------------------------------------------


def compare(
    paths: Iterable[str | Path] = ("outputs",),
    where: str | None = None,
    sort: str | None = None,
    reverse: bool = False,
    fold: bool = True,
    best: bool = False,
) -> Comparison:
    """Read, filter, fold and sort. `best`: a metric's plain name means its best value in `where` and `sort`.

    Raises UserError for names that no run has, and where nothing passes.
    """
    runs = [read_run(path) for path in find_runs(paths)]
    _tell_data_apart(runs)
    names = known_names(runs)
    condition = Where(where, names) if where else None
    metrics = {n for run in runs for n in (*run.metrics, *run.best, *(f"best/{name}" for name in run.best))}
    late = condition is not None and any(name in metrics for name in condition.names)
    root = common_root([run.path for run in runs])
    rows = [Row([run], name_of(run.path, root)) for run in runs]
    if condition is not None and not late:  # about single runs: it must not change what a mean is taken over
        rows = _passing(rows, condition, best)
    rows = _folded(rows) if fold else rows
    if late:
        rows = _passing(rows, condition, best)
    result = Comparison(rows, root)
    result.metrics = [name for name in _metric_names(result.runs) if name != "step"]
    result.settings = _apart(rows)
    _sort(result, sort, reverse, best, names)
    result.notes = _notes(result, len(runs), where)
    return result


def known_names(runs: Sequence[Run]) -> list[str]:
    """All names that some run has a value for."""
    settings = [name for run in runs for name in run.settings]
    metrics = _metric_names(runs)
    return list(dict.fromkeys(["run", "status", *FIGURES, *settings, *metrics, *(f"best/{name}" for name in metrics)]))


def _metric_names(runs: Iterable[Run]) -> list[str]:
    """Validation first, then test, then training, as the runs name them."""
    names = dict.fromkeys(name for run in runs for name in (*run.metrics, *run.best) if "/" in name)
    stage = {"val": 0, "test": 1, "train": 2}
    return sorted(names, key=lambda name: stage.get(name.partition("/")[0], 3))


def _passing(rows: list[Row], condition: Where, best: bool) -> list[Row]:
    kept = [row for row in rows if condition(lambda name, row=row: row.value(meant(name, row.runs, best)))]
    if not kept:
        raise UserError(f"--where {condition.expression!r}: none of {len(rows)} runs passes; ask for less")
    return kept


def meant(name: str, runs: Iterable[Run], best: bool) -> str:
    """`val/loss` is the last value, or with `best` the best one, where the runs have one."""
    return f"best/{name}" if best and any(name in run.best for run in runs) else name


def _tell_data_apart(runs: Sequence[Run]) -> None:
    """A setting more, where runs name the same data and got different ones: changed files, or the fallback."""
    seen: dict[tuple, set[str]] = {}
    for run in runs:
        if run.data.get("hash"):
            seen.setdefault(_data_settings(run), set()).add(str(run.data["hash"]))
    for run in runs:
        if len(seen.get(_data_settings(run), ())) > 1 and run.data.get("hash"):
            run.settings |= {"data.hash": str(run.data["hash"])[:8], "data.used": str(run.data.get("name"))}


def _data_settings(run: Run) -> tuple:
    return tuple((name, str(value)) for name, value in run.settings.items() if name.split(".")[0] == "data")


def _folded(rows: list[Row]) -> list[Row]:
    """Finished runs of other seeds join the first of their settings; a second run of one seed stays a row."""
    first: dict[tuple, Row] = {}
    result = []
    for row in rows:
        run = row.run
        settings = {name: value for name, value in run.settings.items() if name != "seed"}
        key = tuple(sorted((name, repr(value)) for name, value in settings.items()))
        group = first.get(key)
        if run.status != "finished" or not run.settings or run.seed is None:
            result.append(row)
        elif group is None:
            first[key] = row
            result.append(row)
        elif run.seed in {other.seed for other in group.runs}:
            result.append(row)
        else:
            group.runs.append(run)
    for row in result:
        row.runs.sort(key=lambda run: run.seed if run.seed is not None else 0)
        if len(row.runs) > 1:
            row.name += f" +{len(row.runs) - 1} seed{'s' if len(row.runs) > 2 else ''}"
    return result


def _apart(rows: list[Row]) -> list[str]:
    """Settings that differ, those that tell most first: chosen yamls, own differences, what follows from the yamls."""
    several = [row.run.settings for row in rows if row.run.settings]  # of a broken run nothing is known
    names = differing(several)
    if (
        len({row.run.seed for row in rows if len(row.runs) == 1}) < 2 and "seed" in names
    ):  # what folded rows have many of
        names.remove("seed")

    def follows(name: str) -> bool:
        group = name.partition(".")[0]
        if group == name or group not in names:
            return name == "experiment"
        pairs = {(str(settings.get(group)), repr(settings.get(name))) for settings in several}
        return len(pairs) == len({choice for choice, _ in pairs})

    chosen = [name for name in names if "." not in name and name != "experiment"]
    return [*chosen, *sorted((name for name in names if name not in chosen), key=follows)]


def larger_is_better(name: str, runs: Iterable[Run]) -> bool:
    name = name.removeprefix("best/")
    modes = {run.mode for run in runs if run.monitor == name}
    return modes == {"max"} if modes else name.rpartition("/")[2] in LARGER_IS_BETTER


def _sort(result: Comparison, sort: str | None, reverse: bool, best: bool, names: list[str]) -> None:
    """By a column, the best first; without one by the best of the monitor where the runs share it, else as found."""
    if sort is None:
        if len(result.monitors) != 1 or len({run.monitor for run in result.runs}) != 1:
            result.rows.sort(key=lambda row: row.name)
            return
        name = f"best/{result.monitors[0]}"
    else:
        name = resolve(sort, names)
        if name is None:
            raise unknown(f"--sort {sort}", sort, names)
        name = meant(name, result.runs, best)
    down = larger_is_better(name, result.runs) != reverse
    there = [row for row in result.rows if row.get(name) is not None and row.get(name) == row.get(name)]  # no NaN
    numeric = all(number(row.value(name)) is not None for row in there)
    there.sort(key=lambda row: row.value(name) if numeric else str(row.value(name)), reverse=down)
    result.rows = there + [row for row in result.rows if row not in there]


# ---- names and notes -----------------------------------------------------------------------------------------------


def common_root(paths: Sequence[Path]) -> str:
    """The folder that holds all the runs, "" where there is none."""
    if not paths:
        return ""
    try:
        root = os.path.commonpath([str(path.parent) for path in paths])
    except ValueError:  # absolute and relative paths together
        return ""
    return "" if root in (".", os.sep) else root


def name_of(path: Path, root: str) -> str:
    return os.path.relpath(path, root) if root else str(path)


def _notes(result: Comparison, read: int, where: str | None) -> list[str]:
    runs = result.runs
    notes = []
    if where and len(runs) < read:
        notes.append(f"{read - len(runs)} of {read} runs do not pass --where {where!r}")
    for run in runs:
        if run.problems:
            notes.append(f"{run.path}: {'; '.join(run.problems)}")
        elif run.reason and run.status not in ("finished", "running"):
            notes.append(f"{run.path}: {run.status}: {' '.join(run.reason.split())}")
    losses = any(name.endswith(("loss", "perplexity")) for name in result.headline())
    texts = ("data", "data.used", "data.path", "tokenizer", "tokenizer.vocab_size")
    apart = [name for name in texts if name in result.settings]
    if losses and apart and len(result.rows) > 1:
        notes.append(
            f"runs differ in {' and '.join(apart)}: losses a token do not compare across them"
            + ("; val/bits_per_byte does" if "val/bits_per_byte" in result.metrics else "")
        )
    return notes


# ---- for notebooks -------------------------------------------------------------------------------------------------


def runs_table(paths: Iterable[str | Path] | str = ("outputs",), where: str | None = None) -> list[dict[str, Any]]:
    """A dict a run: run, path, status, the settings that differ, last metrics, `best/` metrics, and the costs."""
    return records(compare([paths] if isinstance(paths, (str, Path)) else paths, where=where, fold=False))


def records(result: Comparison) -> list[dict[str, Any]]:
    """Every number of the comparison, one dict a row; of folded rows `n`, and `<name> std` beside each mean."""
    folded = any(len(row.runs) > 1 for row in result.rows)
    keys = [*result.settings, *result.metrics, *(f"best/{name}" for name in result.metrics), *FIGURES]
    keys = [key for key in keys if any(row.get(key) is not None for row in result.rows) or key in result.settings]
    return [_record(row, keys, folded) for row in result.rows]


def _record(row: Row, keys: list[str], folded: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"run": row.name, "path": str(row.run.path), "status": row.run.status}
    if folded:
        record["n"] = len(row.runs)
    for key in keys:
        value = row.get(key)
        record[key] = None if value == UNSET else value
        if folded and key not in row.run.settings and key != "seed":
            record[f"{key} std"] = row.spread(key)
    return record


def to_frame(rows: list[dict[str, Any]]):
    """`runs_table(...)` as pandas.DataFrame. Raises UserError where pandas is not installed."""
    try:
        import pandas  # optional
    except ModuleNotFoundError:
        raise UserError("a data frame needs pandas; type pip install pandas, or use the list as it is") from None
    return pandas.DataFrame(rows)
