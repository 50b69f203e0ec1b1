"""An evaluation as a person reads it in a terminal, and the progress of one on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lit_tfm.console import Console
from lit_tfm.evaluation.report import Progress as Reporter
from lit_tfm.terminal import visible

MOST_CLASSES = 30  # rows of the table by class
MOST_COLUMNS = 8  # a confusion matrix that an 80-column terminal holds


@contextmanager
def progress() -> Iterator[Reporter]:
    """Bars on stderr where that is a terminal; silence otherwise."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bars:

        def begin(what: str, total: int):
            task = bars.add_task(what, total=total)
            return lambda done: bars.advance(task, done)

        yield begin


def show(console: Console, report: dict[str, Any], trained: dict[str, float], headline: tuple[str, ...]) -> None:
    """`trained`: what training measured of the same split, for comparison. `headline`: the task's first metrics."""
    data = visible(str(report["data"]["name"]))
    console.print(Text(f"{visible(report['run'])}\n", style="bold"), soft_wrap=True, end="")
    console.print(Text(f"{report['task']}, {report['checkpoint']}; {report['split']} split of {data}"))
    console.print(Text(counts(report)))
    for note in report["notes"]:
        console.print(Text(f"note: {visible(note)}", style="yellow"))
    console.print(metrics(report, trained, headline))
    for title, part in analysis(report):
        console.print(Text(f"\n{title}", style="bold cyan"))
        console.print(part)


def counts(report: dict[str, Any]) -> str:
    examples = report["examples"]
    kinds = {"example": "texts"}.get(examples["unit"], f"{examples['unit']}s")
    parts = [f"{examples['count']:,} {kinds}", f"{report['tokens']:,} tokens"]
    if report["truncated"]:
        parts.append(f"{report['truncated']:,} texts cut at the model's length")
    if report["unknown_tokens"]:
        parts.append(f"{report['unknown_tokens']:,} unknown tokens")
    if sliding := report.get("sliding"):
        parts.append(f"windows of {sliding['context']} tokens, {sliding['stride']} new ones each")
    return "; ".join(parts)


def metrics(report: dict[str, Any], trained: dict[str, float], headline: tuple[str, ...]) -> Table:
    intervals = report["intervals"]
    level = f"{100 * report['bootstrap']['level']:.0f} % interval"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for column in ("value", *([level] if intervals else []), *(["in training"] if trained else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for name in ordered(report["metrics"], headline):
        cells = [number(report["metrics"][name])]
        if intervals:
            cells.append(" … ".join(map(number, intervals.get(name, ()))))
        if trained:
            cells.append(number(trained.get(name)))
        table.add_row(name, *cells)
    return table


def ordered(metrics: dict[str, float], headline: tuple[str, ...]) -> list[str]:
    """Sliding windows and tokens one by one first, then the task's most important ones, then the others."""
    rank = {name: i for i, name in enumerate(headline)}

    def place(name: str) -> tuple[bool, int]:
        plain = name.removeprefix("sliding_").removeprefix("one_by_one_")
        return plain == name, rank.get(plain.removeprefix("pseudo_"), len(rank))

    return sorted(metrics, key=place)


def number(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return str(value or "")
    return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.3e}"


def analysis(report: dict[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    """A classifier's titles and tables."""
    if "by_class" not in report:
        return
    yield "by class", by_class(report["by_class"])
    if len(report["labels"]) <= MOST_COLUMNS and not isinstance(report["confusion"][0][0], list):
        yield "confusion: rows are true, columns predicted", confusion(report)
    if report["most_confused"]:
        yield "most confused", most_confused(report["most_confused"])
    yield "by length", by_length(report["by_length"])
    if worst := report["mistakes"]["most_confident"]:
        shown = worst[:5]
        yield (
            f"the {len(shown)} most confident of {report['mistakes']['count']:,} mistakes",
            Padding(mistakes(shown), (0, 0, 0, 2)),
        )


def plain_table(*columns: str) -> Table:
    """The first column is a name, the others are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", style="" if i else "cyan", no_wrap=True)
    return table


def by_class(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("label", "precision", "recall", "F1", "examples")
    shown = rows if len(rows) <= MOST_CLASSES else sorted(rows, key=lambda row: row["f1"])[:MOST_CLASSES]
    for row in shown:
        figures = (f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
        table.add_row(Text(visible(row["label"], 36)), *figures, f"{row['examples']:,}")
    if len(shown) < len(rows):
        table.add_row(f"… and {len(rows) - len(shown)} better ones")
    return table


def confusion(report: dict[str, Any]) -> Table:
    names = [visible(name) for name in report["labels"]]
    width = max(4, (78 - 14) // len(names) - 2)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", style="cyan", no_wrap=True, max_width=14)
    for name in names:
        table.add_column(Text(name[:width], style="cyan"), justify="right", no_wrap=True)
    for i, (name, row) in enumerate(zip(names, report["confusion"], strict=True)):
        cells = [Text(f"{count:,}", style="bold" if i == j else "") for j, count in enumerate(row)]
        table.add_row(Text(name[:14]), *cells)
    return table


def most_confused(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("true", "predicted", "count", "of this label")
    table.columns[1].justify = "left"
    for row in rows[:5]:
        names = (Text(visible(row[key], 28)) for key in ("label", "predicted"))
        table.add_row(*names, f"{row['count']:,}", f"{100 * row['share_of_label']:.1f} %")
    return table


def by_length(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("tokens", "accuracy", "loss", "examples")
    for row in rows:
        span = f"{row['shortest']} to {row['longest']}"
        table.add_row(span, f"{row['accuracy']:.3f}", f"{row['loss']:.3f}", f"{row['examples']:,}")
    return table


def mistakes(rows: list[dict[str, Any]]) -> Text:
    """Two lines each: what was said of it, and the text. What the text holds is shown, not obeyed."""
    lines = Text()
    for i, row in enumerate(rows):
        said = f"{visible(row['predicted'] or 'none', 30)} ({row['probability']:.3f})"
        lines.append(f"{'' if i == 0 else chr(10)}{said}", style="red")
        lines.append(f", true: {visible(row['label'] or 'none', 30)}; text {row['index']}\n")
        lines.append(visible(row["text"], 220))
    return lines
