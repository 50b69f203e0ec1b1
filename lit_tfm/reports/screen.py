"""A comparison on a terminal: what does not fit is named, never cut off."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lit_tfm.console import Console
from lit_tfm.reports.columns import Column
from lit_tfm.reports.differences import Differences
from lit_tfm.reports.tables import Comparison
from lit_tfm.terminal import visible

_STYLES = {"failed": "red", "pruned": "yellow", "stopped": "yellow", "running": "cyan", "unknown": "red"}
_WIDEST, _NARROWEST = 30, 15  # of a text, which is folded where it is longer; of a run beside others
_NOTES = 20
_BANDS, _MANY = 3, 30  # tables below one another; rows from which on there is only one
_STANDING = 5  # that many runs may stand side by side


def show_all(
    console: Console, result: Comparison, found: Sequence[Column], differences: Differences | None
) -> list[str]:
    """The table and the differences; returns what has to be told of them."""
    runs, rows = len(result.runs), len(result.rows)
    title = f"{runs} run{'s' * (runs != 1)}" + (f" in {result.root}" if result.root else "")
    title += f", {rows} settings" if rows < runs else ""
    hidden = show(console, found, title)
    if differences and differences.rows:
        hidden += show(console, differences.columns(), differences.title(), standing=False)
    if not hidden:
        return []
    named = ", ".join(hidden[:8]) + (f" and {len(hidden) - 8} more" if len(hidden) > 8 else "")
    return [f"no room for {named}: --columns chooses, --format csv and --html have all"]


def tell(console: Console, notes: Sequence[str]) -> None:
    """A line each; the first of many that only name a run."""
    for note in notes[:_NOTES]:
        console.print(visible(note), highlight=False, soft_wrap=True)
    if len(notes) > _NOTES:
        console.print(f"and {len(notes) - _NOTES} lines like these; --html has all", highlight=False)


def show(console: Console, found: Sequence[Column], title: str, standing: bool = True) -> list[str]:
    """Prints the table; the names of the columns that had no room.

    With `standing` a few runs that do not fit as rows stand side by side as columns, one line a figure. Of some more
    the columns that do not fit follow below, the runs' names again before them.
    """
    console.print(Text(visible(title), style="italic"))
    run, *rest = found
    few = standing and len(run.cells) <= _STANDING
    if few and len(fitting(found, console.width)) < len(found) and _room(found, console.width) >= _NARROWEST:
        console.print(_standing(found, _room(found, console.width)))
        return []
    for _ in range(_BANDS if len(run.cells) <= _MANY else 1):
        kept = fitting([run, *rest], console.width)
        if len(kept) > 1 or not rest:
            console.print(_lying(kept))
        rest = [column for column in rest if column not in kept]
        if not rest:
            break
    return [column.whole for column in rest]


def fitting(found: Sequence[Column], width: int) -> list[Column]:
    """As many columns as there is room for, in their order; those of the largest rank are left out first."""
    kept: list[Column] = []
    room = width
    for column in sorted(found, key=lambda column: column.rank):
        need = _width(column) + 2
        if need <= room or not kept:
            kept.append(column)
            room -= need
    return [column for column in found if column in kept]


def _width(column: Column) -> int:
    cells = max((len(cell) for cell in column.cells), default=0)
    return max(len(column.title), len(column.note), cells if column.number else min(cells, _WIDEST))


def _table() -> Table:
    # A space at either edge, two between columns: what `fitting` counts with.
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _lying(found: Sequence[Column]) -> Table:
    table = _table()
    for column in found:
        head = Text(visible(column.title))
        if column.note:
            head.append(f"\n{column.note}", style="dim")
        table.add_column(
            head,
            justify="right" if column.number else "left",
            no_wrap=column.number,
            overflow="fold",
            min_width=_width(column),
            max_width=_width(column),
        )
    for row in zip(*(column.cells for column in found), strict=True):
        table.add_row(*(_styled(column, cell) for column, cell in zip(found, row, strict=True)))
    return table


def _styled(column: Column, cell: str) -> Text:
    return Text(visible(cell), style=_STYLES.get(cell, "") if column.key == "status" else "")


def _room(found: Sequence[Column], width: int) -> int:
    """Characters for each run, where the runs stand side by side."""
    heads = max(len(column.whole) for column in found)
    return min(_WIDEST, (width - heads) // len(found[0].cells) - 2)


def _standing(found: Sequence[Column], width: int) -> Table:
    run, *others = found
    table = _table()
    table.add_column("", style="bold cyan", no_wrap=True)
    for name in run.cells:
        table.add_column(Text(visible(name)), overflow="fold", max_width=width, justify="right")
    for column in others:
        table.add_row(Text(visible(column.whole)), *(_styled(column, cell) for cell in column.cells))
    return table
