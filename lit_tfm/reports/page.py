"""One html page that needs nothing else: plotly.js, styles and data stand inside it, and no network is asked.

    page("Three runs", ["What a reader should know first.", Heading("Loss"), Figure(figure), Table(columns, rows)])

Text is escaped wherever it comes from. A click on a column's head sorts a table, a second click turns it round; the
page follows the reader's light or dark.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_tfm.errors import UserError

_HERE = Path(__file__).parent
# Nothing is fetched, even if some text got past the escaping. Plotly's WebGL traces build functions from text.
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Code:
    """Text to be copied: a command, a yaml."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A plotly figure, or its {"data": [...], "layout": {...}}.

    `axes` puts a row of buttons over it, one for each entry: title of the x axis -> the x of every trace, in order
    (None for a trace that has none on that axis).
    """

    figure: Any
    caption: str = ""
    height: int = 440
    axes: Mapping[str, Sequence[Sequence[float] | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """What a cell shows, what it is sorted by, what it says when pointed at, and where it leads."""

    text: str
    value: float | str | None = None
    hint: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text, numbers, None (empty, sorted last) or `Cell`s."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


Section = str | Heading | Code | Figure | Table


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole html. A string among the sections is a paragraph; plotly.js is there once, if a figure is."""
    body = "\n".join(_section(section, number) for number, section in enumerate(sections))
    plotly = f"<script>{plotly_js()}</script>" if any(isinstance(s, Figure) for s in sections) else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>{_read("page.css")}</style>
{plotly}
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
<script>{_read("page.js")}</script>
</body>
</html>
"""


def plotly_js() -> str:
    """Plotly's own file; plotly itself is not imported. Raises UserError where it is not installed."""
    spec = find_spec("plotly")
    if spec is None:
        raise UserError("an html page needs plotly; type pip install plotly")
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def label(text: object) -> str:
    """For a name in a figure: plotly would read <b> and & in it as markup."""
    return html.escape(str(text), quote=False)


def _section(section: Section, number: int) -> str:
    if isinstance(section, Heading):
        return f"<h{section.level}>{html.escape(section.text)}</h{section.level}>"
    if isinstance(section, Code):
        return f"<pre><code>{html.escape(section.text)}</code></pre>"
    if isinstance(section, Figure):
        return _figure(section, number)
    if isinstance(section, Table):
        return _table(section)
    return f"<p>{html.escape(section)}</p>"


def _figure(section: Figure, number: int) -> str:
    figure = section.figure
    plain = figure if isinstance(figure, dict) else json.loads(figure.to_json())
    content = {"data": plain.get("data", []), "layout": plain.get("layout", {}), "axes": dict(section.axes)}
    caption = f"<figcaption>{html.escape(section.caption)}</figcaption>" if section.caption else ""
    return (
        f'<figure><div class="axes"></div><div class="plot" id="plot{number}" style="height:{section.height}px"></div>'
        f'<script type="application/json">{_json(content)}</script>{caption}</figure>'
    )


def _json(content: Any) -> str:
    """Json for the inside of a script: no text in it can end the script, NaN and infinity are null."""
    text = json.dumps(_finite(content), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{html.escape(str(name))}</button></th>'
        for name in table.columns
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
    )


def _cell(given: Any) -> str:
    cell = given if isinstance(given, Cell) else Cell(_shown(given), given)
    value = cell.text if cell.value is None and isinstance(given, Cell) else cell.value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    missing = value is None or value == "" or (number and math.isnan(value))
    sort = "" if missing else f' data-value="{html.escape(str(value))}"'
    hint = f' title="{html.escape(cell.hint)}"' if cell.hint else ""
    text = html.escape(cell.text)
    if cell.link and not cell.link.lower().lstrip().startswith(("javascript:", "data:", "vbscript:")):
        text = f'<a href="{html.escape(cell.link)}">{text}</a>'
    kind = ' class="number"' if number else ""
    return f"<td{kind}{sort}{hint}>{text}</td>"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
