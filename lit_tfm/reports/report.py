"""The html report of a comparison: the table, curves, what quality costs, and everything else that is known."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from lit_tfm.errors import UserError
from lit_tfm.reports import figures
from lit_tfm.reports.columns import Column, columns
from lit_tfm.reports.differences import Differences
from lit_tfm.reports.page import Cell, Code, Heading, Section, Table, page
from lit_tfm.reports.tables import Comparison, Row
from lit_tfm.runs import write_text


def write(
    path: str | Path,
    result: Comparison,
    found: Sequence[Column],
    differences: Differences | None = None,
    metrics: Sequence[str] = (),
    command: str = "",
) -> Path:
    """`found`: the columns of the table; `metrics`: whose curves are drawn, () for the most telling ones.

    Raises UserError where the page can't be written.
    """
    path = Path(path).expanduser()
    sections = _sections(result, found, differences, metrics, command, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page(_title(result), sections))
    except OSError as error:
        raise UserError(f"--html {path}: can't be written ({error.strerror}); name another file") from error
    return path


def _title(result: Comparison) -> str:
    count = len(result.runs)
    return f"{count} run{'s' if count != 1 else ''}{f' in {result.root}' if result.root else ''}"


def _sections(result, found, differences, metrics, command, path) -> list[Section]:
    sections: list[Section] = [_opening(result)]
    if command:
        sections.append(Code(command))
    sections += [Heading("What was set, what was reached"), _table(result, found, path)]
    if differences:
        sections.append(Heading(differences.title()))
        if differences.rows:
            sections.append(_plain_table(differences))
        sections += differences.notes
    if names := figures.curve_names(result, metrics):
        sections.append(Heading("Curves"))
        sections.append("A click on a name hides or shows a run; a drag zooms, a double click goes back.")
        for name in names:
            sections += [Heading(name, 3), figures.curve(result, name)]
    scatters = [(name, figures.scatter(result, name, found)) for name in result.headline() if name.startswith("val/")]
    if any(figure for _, figure in scatters):
        sections.append(Heading("Cost against quality"))
        sections.append(
            "No finished run beats one on the dotted line in both. Rings: runs that did not finish. "
            "A double click shows also what lies outside."
        )
        for name, figure in scatters:
            sections += [Heading(name, 3), figure] if figure else []
    every = columns(result, every=True)
    if len(every) > len(found):
        sections += [Heading("All metrics"), _table(result, every, path)]
    sections += _remarks(result)
    return sections


def _opening(result: Comparison) -> str:
    runs, rows = result.runs, result.rows
    states = Counter(run.status for run in runs)
    text = ", ".join(f"{count} {status}" for status, count in states.most_common())
    if len(rows) < len(runs):
        text += f". Seeds of one setting are one row, mean ± standard deviation: {len(rows)} rows"
    count = len(result.settings)
    differ = "1 setting differs" if count == 1 else f"{count} settings differ"
    return f"{text}. {differ}. Written {datetime.now():%Y-%m-%d %H:%M}."


def _table(result: Comparison, found: Sequence[Column], path: Path) -> Table:
    rows = [[_cell(column, row, i, path) for column in found] for i, row in enumerate(result.rows)]
    return Table([column.whole for column in found], rows)


def _cell(column: Column, row: Row, i: int, path: Path) -> Cell:
    text, value = column.cells[i], row.get(column.key)
    if column.key == "run":
        hint = "\n".join(str(run.path) for run in row.runs)
        folder = os.path.relpath(row.run.path, path.parent or ".")
        return Cell(text, text, hint, quote(folder) + "/")
    if column.key == "status" and row.run.reason:
        return Cell(text, text, row.run.reason)
    if isinstance(value, bool) or value is None:
        return Cell(text)
    return Cell(text, value, f"{value}" if isinstance(value, float) else "")


def _plain_table(differences: Differences) -> Table:
    rows = differences.rows
    values = {
        "baseline": [row.baseline for row in rows],
        "value": [row.value for row in rows],
        "difference": [row.difference for row in rows],
        "interval": [row.low for row in rows],
        "examples": [row.examples for row in rows],
    }
    found = differences.columns()
    cells = [
        [Cell(column.cells[i], values[column.key][i] if column.key in values else None) for column in found]
        for i in range(len(rows))
    ]
    return Table([column.title or "verdict" for column in found], cells)


def _remarks(result: Comparison) -> list[Section]:
    remarks = [*result.notes, *_environments(result)]
    return [Heading("To be known"), *remarks] if remarks else []


def _environments(result: Comparison) -> list[str]:
    """What the machines and versions differ in: it may be the reason of a difference."""
    known: dict[str, Counter] = {}
    for run in result.runs:
        try:
            told = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
            git, packages = told.get("git") or {}, told.get("packages") or {}
        except (OSError, ValueError, AttributeError):
            continue
        facts = {"hardware": told.get("hardware"), "python": told.get("python"), **packages}
        facts["git commit"] = f"{str(git.get('commit'))[:10]}{'' if git.get('clean') else ' with changes'}"
        for name, value in facts.items():
            known.setdefault(name, Counter())[str(value)] += 1
    return [
        f"{name} differs: "
        + ", ".join(f"{value} ({count} run{'s' * (count > 1)})" for value, count in counts.most_common(6))
        for name, counts in known.items()
        if len(counts) > 1
    ]
