"""The page stands alone, escapes what it is given, and sorts by what its cells mean. (A real click: tests/browser.)"""

import json
import re
from html.parser import HTMLParser

import pytest

from lit_tfm.reports.page import Cell, Code, Figure, Heading, Table, label, page

EVIL = '</script><img src=x onerror="alert(1)"> & <b>'


class Tags(HTMLParser):
    """Tags with attributes, and text, as a browser sees them; scripts and styles are text of their own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


FIGURE = {"data": [{"y": [1.0, float("nan"), 3.0], "name": label(EVIL)}], "layout": {"title": {"text": EVIL}}}


def test_whatever_is_given_stays_text() -> None:
    sections = [EVIL, Heading(EVIL), Code(EVIL), Figure(FIGURE, caption=EVIL), Table([EVIL], [[EVIL], [Cell(EVIL)]])]
    seen = Tags(page(EVIL, [*sections, Table(["a"], [[Cell(EVIL, EVIL, hint=EVIL, link=EVIL)]], caption=EVIL)]))
    assert not seen.named("img")
    assert not seen.named("b")
    for tag, number in (("title", 1), ("h1", 1), ("p", 1), ("td", 3), ("figcaption", 1), ("caption", 1)):
        assert len(seen.named(tag)) == number
    assert seen.text.count(EVIL) == 11


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = page("Runs", [Figure(FIGURE), Figure(FIGURE), Table(["a"], [[1]])])
    seen = Tags(text)
    assert not [tag for tag, attributes in seen.tags if "src" in attributes or tag == "link"]
    assert "default-src 'none'" in text
    scripts = re.findall(r"<script>(.{200})", text, flags=re.DOTALL)
    assert sum("plotly.js v" in script for script in scripts) == 1
    assert "plotly.js v" not in page("Runs", [Table(["a"], [[1]])])


def test_a_figure_arrives_whole_and_without_nan() -> None:
    figure = Figure(FIGURE, axes={"steps": [[1, 2, 3]], "tokens": [None]})
    held = re.search(r'<script type="application/json">(.*?)</script>', page("Runs", [figure])).group(1)
    content = json.loads(held)
    assert content["data"][0]["y"] == [1.0, None, 3.0]
    assert content["layout"]["title"]["text"] == EVIL
    assert content["axes"] == {"steps": [[1, 2, 3]], "tokens": [None]}


def test_a_plotly_figure_is_taken_as_it_is() -> None:
    graphs = pytest.importorskip("plotly.graph_objects")
    text = page("Runs", [Figure(graphs.Figure(graphs.Scatter(x=[1, 2], y=[3, 4], name="one")))])
    held = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text).group(1))
    assert held["data"][0]["name"] == "one"


def test_cells_carry_what_they_are_sorted_by() -> None:
    rows = [[1234567, 0.12345678, None, "word", Cell("1.2 ± 0.1", 1.2), True, float("nan")]]
    seen = Tags(page("Runs", [Table(list("abcdefg"), rows)]))
    assert [cell.get("data-value") for cell in seen.named("td")] == [
        "1234567", "0.12345678", None, "word", "1.2", "True", None,
    ]  # fmt: skip
    assert [text for text in seen.text if text in ("1,234,567", "0.1235", "word", "1.2 ± 0.1", "True")] == [
        "1,234,567", "0.1235", "word", "1.2 ± 0.1", "True",
    ]  # fmt: skip


def test_a_link_that_would_run_a_script_is_dropped() -> None:
    rows = [
        [Cell("a", link="runs/one")],
        [Cell("b", link=" JavaScript:alert(1)")],
        [Cell("c", link="data:text/html,x")],
    ]
    assert [a["href"] for a in Tags(page("Runs", [Table(["run"], rows)])).named("a")] == ["runs/one"]
