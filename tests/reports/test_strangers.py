"""A run of somebody else in a report: no name, label, setting, metric or error text of it becomes markup."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from lit_tfm.compare import compare, parser

IMAGE = "<img src=x onerror=alert(2)>"
EVIL = f"</script><script>alert(1)</script>{IMAGE}\"' onclick=alert(3) x='"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


def run_folder(folder: Path, number: int) -> None:
    """As a stranger may have written it: every text that a report could show."""
    folder.mkdir(parents=True)
    settings = {
        "name": EVIL,
        "seed": number,
        "tags": [EVIL],
        "optimizer": {"lr": number, EVIL: EVIL, "kind": EVIL * number},
    }
    (folder / "config.yaml").write_text(
        yaml.safe_dump({**settings, "monitor": f"val/{EVIL}", "data": {"labels": [EVIL]}})
    )
    lines = [
        f'{step},{step}.0,{100 * step},"val/{EVIL.replace(chr(34), chr(34) * 2)}",{9.0 - step}' for step in (1, 2, 3)
    ]
    lines += [f"{step},{step}.0,{100 * step},val/loss,{9.0 - step - number}" for step in (1, 2, 3)]
    (folder / "metrics.csv").write_text("\n".join(["step,seconds,tokens,name,value", *lines]) + "\n")
    reached = {f"val/{EVIL}": 1.0 + number, "val/loss": 2.0 + number}
    summary = {"status": EVIL if number else "finished", "steps": 3, "tokens": 300, "seconds": 3.0, "parameters": 9}
    (folder / "summary.json").write_text(json.dumps({**summary, "metrics": reached, "best": reached, "monitor": EVIL}))
    (folder / "trial.json").write_text(json.dumps({"number": number, "state": "failed", "reason": EVIL}))
    (folder / "environment.json").write_text(
        json.dumps({"hardware": f"{EVIL}{number}", "packages": {EVIL: EVIL * number}})
    )
    (folder / "data.json").write_text(json.dumps({"name": f"{EVIL}{number}", "hash": EVIL, "labels": [EVIL]}))


def texts(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        node = [*node, *node.values()]
    if isinstance(node, list):
        for child in node:
            yield from texts(child)
    elif isinstance(node, str):
        yield node


@pytest.mark.parametrize("words", [[], ["--each-seed"]], ids=["", "each seed"])
def test_nothing_of_a_run_becomes_markup(words: list[str], tmp_path, capsys) -> None:
    for number in range(3):
        run_folder(tmp_path / "outputs" / f"{IMAGE} {number}", number)
    page = tmp_path / "page.html"
    compare(parser().parse_args([str(tmp_path / "outputs"), "--html", str(page), "--format", "json", *words]))
    text = page.read_text()
    seen = Tags(text).seen
    assert not [tag for tag, _ in seen if tag in ("img", "iframe", "object", "embed", "link")]
    assert not [attributes for _, attributes in seen if any(name.startswith("on") for name in attributes)]
    # The page's own, plotly, and one table of numbers for each figure: none ends early, none is added.
    drawn = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert len(drawn) >= 2
    assert sum(tag == "script" for tag, _ in seen) == len(drawn) + 2
    for each in drawn:  # plotly reads these as a little html of its own
        assert not [part for part in texts(json.loads(each)) if re.search("<(img|script|a )", part)]
    assert "&lt;img src=x onerror=alert(2)&gt;" in text
    capsys.readouterr()
