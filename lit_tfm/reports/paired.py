"""Is the difference more than chance? Runs against a baseline, example by example, with a bootstrap interval.

Reads what `python -m lit_tfm.evaluate RUN` leaves in `evaluation/<name>.examples.csv`: `index,label,predicted,
probability,loss` of a classifier, `index,loss,targets` (loss: nats, summed over the targets; perhaps bytes) of others.
The same examples are drawn for both runs, so what makes an example hard for both does not count (Koehn 2004,
"Statistical significance tests for machine translation evaluation"). The interval tells of the choice of examples,
not of seeds.

N examples.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_tfm.errors import UserError, nearest
from lit_tfm.reports.differences import Difference, Differences
from lit_tfm.reports.reading import find_runs, read_run
from lit_tfm.reports.tables import Comparison, Row, common_root, name_of

DRAWS = 2000
ENDING = ".examples.csv"
Sums = dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> numerators and denominators, (N,) each


@dataclass
class Examples:
    sums: Sums
    index: np.ndarray  # (N,) sorted
    labels: np.ndarray | None  # (N,) texts
    about: dict[str, str | None]  # what both must share: data and tokenizer (hashes), unit of an example


# ---- comparing -----------------------------------------------------------------------------------------------------


def against(result: Comparison, baseline: str | Path, evaluation: str | None = None) -> Differences:
    """Every other row of the comparison against the baseline.

    Raises UserError where `baseline` names no run or runs of several settings, or no run has the evaluation asked for.
    """
    base = _baseline(result, baseline)
    others = [row for row in result.rows if not {_place(r) for r in row.runs} & {_place(r) for r in base.runs}]
    chosen = _choose([base, *others], evaluation)
    found = Differences(base.name, chosen or "")
    missing = [
        run.path for row in [base, *others] for run in row.runs if chosen is None or not _file(run, chosen).exists()
    ]
    if missing:
        found.notes.append(_how(missing))
    if chosen is None or not _all(base, chosen):
        return found
    reference = _row_examples(base, chosen, found.notes)
    for row in others if reference else []:
        if _all(row, chosen) and (examples := _row_examples(row, chosen, found.notes)):
            found.rows += _differences(row.name, examples, reference, found.notes)
    return found


def _baseline(result: Comparison, given: str | Path) -> Row:
    paths = find_runs([given])
    wanted = {path.resolve() for path in paths}
    for row in result.rows:
        if wanted == {_place(run) for run in row.runs}:
            return row
    if len(paths) > 1:
        raise UserError(f"--baseline {given}: holds {len(paths)} runs of several settings; name one run folder")
    root = result.root or common_root([paths[0]])
    return Row([read_run(paths[0])], name_of(paths[0], root))


def _place(run) -> Path:
    return run.path.resolve()


def _file(run, name: str) -> Path:
    return run.path / "evaluation" / f"{name}{ENDING}"


def _all(row: Row, name: str) -> bool:
    return all(_file(run, name).exists() for run in row.runs)


def _choose(rows: Sequence[Row], asked: str | None) -> str | None:
    """The evaluation that most rows have; test before others of as many."""
    counts: dict[str, int] = {}
    for row in rows:
        for file in {f.name for run in row.runs for f in (run.path / "evaluation").glob(f"*{ENDING}")}:
            name = file.removesuffix(ENDING)
            counts[name] = counts.get(name, 0) + 1
    if asked is not None and asked not in counts:
        there = f"; there is {', '.join(sorted(counts))}" if counts else ""
        raise UserError(f"--evaluation {asked}: no run has evaluation/{asked}{ENDING}{nearest(asked, counts)}{there}")
    return asked or max(sorted(counts), key=lambda name: (counts[name], name == "test"), default=None)


def _how(missing: Sequence[Path]) -> str:
    names = [str(path) for path in missing]
    commands = "; ".join(f"python -m lit_tfm.evaluate {name}" for name in names[:3])
    more = f" (and {len(names) - 3} more runs)" if len(names) > 3 else ""
    return f"no examples to compare yet; make them with: {commands}{more}"


def _differences(name: str, mine: Examples, base: Examples, notes: list[str]) -> list[Difference]:
    """Over the examples that both have."""
    common, here, there = np.intersect1d(mine.index, base.index, assume_unique=True, return_indices=True)
    if why := _foreign(mine, base, here, there):
        notes.append(f"{name}: {why}: not compared")
        return []
    if len(common) < max(len(mine.index), len(base.index)):
        notes.append(f"{name}: compared over the {len(common):,} examples that both have")
    names = [key for key in base.sums if key in mine.sums]
    if mine.labels is None and _differ(mine, base, "tokenizer"):
        names = [key for key in names if key == "bits_per_byte"]
        notes.append(f"{name}: another tokenizer than the baseline's: losses a token do not compare")
    result = []
    for metric_name in names:
        pairs = [part[here] for part in mine.sums[metric_name]], [part[there] for part in base.sums[metric_name]]
        values = [float(top.sum() / bottom.sum()) for top, bottom in pairs]
        low, high = interval(*pairs)
        result.append(Difference(name, metric_name, values[1], values[0], low, high, len(common)))
    return result


def _foreign(mine: Examples, base: Examples, here: np.ndarray, there: np.ndarray) -> str:
    """Why these are not the same examples; "" where they are."""
    if _differ(mine, base, "data"):
        return "evaluated on other data than the baseline"
    if mine.labels is None or base.labels is None:
        blocks = mine.labels is not base.labels or len(mine.index) != len(here) or len(base.index) != len(there)
        same = not blocks and not _differ(mine, base, "unit")
    else:
        same = len(here) > 0 and bool((mine.labels[here] == base.labels[there]).all())
    return "" if same else "its examples are not those of the baseline"


def _differ(mine: Examples, base: Examples, what: str) -> bool:
    told = mine.about.get(what), base.about.get(what)
    return None not in told and told[0] != told[1]


def interval(mine: Sequence[np.ndarray], base: Sequence[np.ndarray], draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile interval of the difference of two ratios of sums; always the same draws.

    mine, base: numerators and denominators, (N,) each.
    """
    columns = np.stack([*mine, *base], axis=1).astype(np.float64)  # (N, 4)
    generator = np.random.default_rng(0)
    n = len(columns)
    found = np.empty(draws)
    for i in range(draws):
        top, bottom, base_top, base_bottom = np.bincount(generator.integers(n, size=n), minlength=n) @ columns
        found[i] = top / bottom - base_top / base_bottom if bottom and base_bottom else np.nan
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


# ---- reading -------------------------------------------------------------------------------------------------------


def _row_examples(row: Row, name: str, notes: list[str]) -> Examples | None:
    """Of several seeds the mean, example by example."""
    every = []
    for run in row.runs:
        try:
            every.append(read_examples(_file(run, name)))
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            notes.append(f"{_file(run, name)} can't be read ({type(error).__name__}: {error}); evaluate the run again")
            return None
    first = every[0]
    if any(not np.array_equal(first.index, other.index) for other in every):
        notes.append(f"{row.name}: its seeds were evaluated on other examples: not compared")
        return None
    sums = {
        key: tuple(np.mean([other.sums[key][part] for other in every], axis=0) for part in (0, 1)) for key in first.sums
    }
    return Examples(sums, first.index, first.labels, first.about)


def read_examples(path: Path) -> Examples:
    """Raises ValueError, KeyError or TypeError (a torn line) for a file that holds something else."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("it is empty")
    index = np.array([int(row["index"]) for row in rows])
    order = np.argsort(index, kind="stable")
    if len(np.unique(index)) < len(index):
        raise ValueError("an index stands twice")

    def numbers(name: str) -> np.ndarray:
        return np.array([float(row[name]) for row in rows])[order]

    loss, ones = numbers("loss"), np.ones(len(rows))
    if "targets" not in rows[0]:
        labels = np.array([row["label"] for row in rows])[order]
        right = labels == np.array([row["predicted"] for row in rows])[order]
        sums = {"accuracy": (right.astype(float), ones), "loss": (loss, ones)}
        return Examples(sums, index[order], labels, _about(path))
    sums = {"loss": (loss, numbers("targets"))}
    if "bytes" in rows[0]:
        sums["bits_per_byte"] = (loss / math.log(2), numbers("bytes"))
    return Examples(sums, index[order], None, _about(path))


def _about(path: Path) -> dict[str, str | None]:
    """From the json beside it, where there is one."""
    try:
        told = json.loads(path.with_name(path.name.replace(ENDING, ".json")).read_text(encoding="utf-8"))
        return {
            "data": told["data"]["hash"],
            "tokenizer": told.get("tokenizer"),
            "unit": told.get("examples", {}).get("unit"),
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
