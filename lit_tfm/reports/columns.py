"""Which columns of a comparison are shown, and what their cells say: the same for terminal, markdown and html."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_tfm.errors import UserError
from lit_tfm.reports.numbers import shown
from lit_tfm.reports.settings import UNSET, short_names
from lit_tfm.reports.tables import COSTS, FIGURES, Comparison, Row
from lit_tfm.reports.where import resolve, unknown

_TITLES = {"seconds": "time", "parameters": "params", "flops": "FLOPs", "flops_per_token": "FLOPs/token"}


@dataclass
class Column:
    """`rank`: what goes first where there is no room has the largest one."""

    key: str
    title: str
    note: str = ""  # under the title: best, last
    number: bool = True
    rank: int = 0
    cells: list[str] = field(default_factory=list)

    @property
    def whole(self) -> str:
        return f"{self.title} {self.note}".strip()


def columns(
    result: Comparison,
    metrics: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    which: str = "both",
    every: bool = False,
) -> list[Column]:
    """`metrics`: names or globs, None: the headline; `only`: these columns and no others; `which`: best, last, both;
    `every`: all metrics. Raises UserError for names that nothing has."""
    if only:
        return [_named(result, name) for name in _columns_asked(result, only)]
    names = result.metrics if every else _metrics_asked(result, metrics)
    chosen = [_plain(result, "run", "run", number=False)]
    statuses = {row.run.status for row in result.rows}
    if statuses != {"finished"}:
        chosen.append(_plain(result, "status", "status", number=False, rank=1))
    short = short_names(result.settings)
    chosen += [_setting(result, name, short[name], rank) for rank, name in enumerate(result.settings)]
    chosen += _metric_columns(result, names, which)
    chosen += [_plain(result, key, _TITLES.get(key, key), rank=10 + i) for i, key in enumerate(COSTS)]
    return [column for column in chosen if any(column.cells)]


def _metrics_asked(result: Comparison, asked: Sequence[str] | None) -> list[str]:
    if not asked:
        return result.headline()
    names: list[str] = []
    for pattern in asked:
        found = [name for name in result.metrics if fnmatch.fnmatchcase(name, "*" if pattern == "all" else pattern)]
        if not found:
            raise unknown(f"--metrics {pattern}", pattern, result.metrics)
        names += found
    return list(dict.fromkeys(names))


def _columns_asked(result: Comparison, asked: Sequence[str]) -> list[str]:
    settings = dict.fromkeys(name for run in result.runs for name in run.settings)
    known = ["run", "status", *FIGURES, *settings, *result.metrics, *(f"best/{name}" for name in result.metrics)]
    names = ["run"]
    for name in asked:
        matched = fnmatch.filter(known, name) if "*" in name else [resolve(name, known)]
        if not matched or matched == [None]:
            raise unknown(f"--columns {name}", name, known)
        names += matched
    return list(dict.fromkeys(names))


def _named(result: Comparison, name: str) -> Column:
    if name in ("run", "status"):
        return _plain(result, name, name, number=False)
    if any(name in run.settings for run in result.runs):
        return _setting(result, name, name, 0)
    if name in FIGURES:
        return _plain(result, name, _TITLES.get(name, name))
    return _metric(result, name.removeprefix("best/"), "best" if name.startswith("best/") else "last", 0)


def _metric_columns(result: Comparison, names: Sequence[str], which: str) -> list[Column]:
    """Best before last; of the test split there is only one."""
    found = []
    for i, name in enumerate(names):
        both = any(f"{name}" in run.best for run in result.runs)
        kinds = {"both": ["best", "last"], "best": ["best"] if both else ["last"], "last": ["last"]}[which]
        kinds = kinds if both else ["last"]
        found += [_metric(result, name, kind, 2 + 3 * i + 6 * (kind == "last" and len(kinds) > 1)) for kind in kinds]
    return found


def _metric(result: Comparison, name: str, kind: str, rank: int) -> Column:
    key = f"best/{name}" if kind == "best" else name
    column = _plain(result, key, name, rank=rank)
    column.note = kind if any(name in run.best for run in result.runs) else ""
    return column


def _setting(result: Comparison, name: str, title: str, rank: int) -> Column:
    cells = [shown(name, _setting_of(row, name), is_setting=True) for row in result.rows]
    values = [_setting_of(row, name) for row in result.rows]
    number = all(
        (isinstance(value, (int, float)) and not isinstance(value, bool)) or value == UNSET for value in values
    )
    return Column(name, title, number=number, rank=3 + 2 * rank, cells=cells)


def _setting_of(row: Row, name: str):
    if name == "seed" and row.run.settings:
        return row.value("seed")
    return row.run.settings.get(name, UNSET)


def _plain(result: Comparison, key: str, title: str, number: bool = True, rank: int = 0) -> Column:
    cells = [shown(key, row.get(key), row.spread(key)) for row in result.rows]
    return Column(key, title, number=number, rank=rank, cells=cells)


def check_which(best: bool, last: bool) -> str:
    if best and last:
        raise UserError("--best and --last: one of them; without either both are shown")
    return "best" if best else "last" if last else "both"
