"""Parts of a report (reports/page.py) shown one under the other in a notebook."""

import plotly.graph_objects as go
from IPython.display import Markdown, display  # notebooks have it; nothing else imports this file

from lit_tfm.errors import UserError
from lit_tfm.reports.page import Cell, Figure, Heading, Section, Table
from lit_tfm.reports.tables import to_frame


def show(*sections: Section) -> None:
    """Headings and paragraphs as text, figures as plotly's, tables as pandas'."""
    if not sections:
        raise UserError("there is nothing to show")
    for section in sections:
        if isinstance(section, Figure):
            display(go.Figure(section.figure).update_layout(height=section.height))
        elif isinstance(section, Table):
            display(to_frame([dict(zip(section.columns, map(_plain, row), strict=True)) for row in section.rows]))
        elif isinstance(section, Heading):
            display(Markdown(f"{'#' * (section.level + 1)} {section.text}"))
        else:
            display(Markdown(section if isinstance(section, str) else f"```\n{section.text}\n```"))


def _plain(cell):
    return cell.text if isinstance(cell, Cell) else cell
