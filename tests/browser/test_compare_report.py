"""The report of compare, opened from a file as a person would: sorted by clicks, its axes switched, looked at.

The picture in docs/images was made by `python -m lit_tfm.compare --html` the same way, over runs trained longer.
"""

import itertools
import json
from pathlib import Path

import pytest

from lit_tfm import compare, config
from lit_tfm.train import train

COLUMN = "[...document.querySelectorAll('table')[0].tBodies[0].rows].map(row => row.cells[{0}].textContent)"
HEADS = "[...document.querySelectorAll('table')[0].tHead.rows[0].cells].map(head => head.textContent)"
PLOT = "document.querySelectorAll('.plot')[0]"


@pytest.fixture(scope="module")
def outputs(text_folder, session_cache, tmp_path_factory) -> Path:
    """Six real runs: three learning rates of two seeds; one name that tries to be markup."""
    folder = tmp_path_factory.mktemp("report") / "outputs"
    given = ["experiment=char_gpt", f"data.path={text_folder}", f"cache_dir={session_cache}", "budget=null"]
    given += ["model.d_model=16", "model.n_layers=1", "model.n_heads=1", "trainer.precision=32", "data.val_limit=8"]
    given += ["trainer.max_steps=12", "trainer.val_every=3", "trainer.log_every=1", "trainer.accelerator=cpu"]
    for i, (lr, seed) in enumerate(itertools.product((0.01, 0.001, 0.1), (1, 2))):
        name = "<b onclick=alert(1)>x" if i == 0 else f"run{i}"
        train(
            config.compose([*given, f"optimizer.lr={lr}", f"seed={seed}", f"output_dir={folder / str(i)}"]), quiet=True
        )
        (folder / str(i)).rename(folder / name)
    return folder


@pytest.fixture(scope="module")
def report(outputs) -> Path:
    given = [str(outputs), "--each-seed", "--html", str(outputs.parent / "report.html"), "--format", "json"]
    compare.compare(compare.parser().parse_args(given))
    return outputs.parent / "report.html"


def test_the_report_is_sorted_by_clicks(chromium, report) -> None:
    page = chromium.open(report.as_uri())
    page.wait_for("document.querySelectorAll('.plot .main-svg').length > 2")
    heads = page.js(HEADS)
    place = heads.index("lr")
    assert len(page.js(COLUMN.format(0))) == 6

    page.click("thead th button", has="lr")
    assert page.js(COLUMN.format(place)) == ["0.001", "0.001", "0.01", "0.01", "0.1", "0.1"]
    page.click("thead th button", has="lr")
    assert page.js(COLUMN.format(place)) == ["0.1", "0.1", "0.01", "0.01", "0.001", "0.001"]
    assert page.js(f"document.querySelectorAll('th')[{place}].getAttribute('aria-sort')") == "descending"

    page.click("thead th button", has="val/loss best")
    losses = [float(text) for text in page.js(COLUMN.format(heads.index("val/loss best")))]
    assert losses == sorted(losses)
    page.click("thead th button", has="run")
    names = page.js(COLUMN.format(0))
    assert names == ["<b onclick=alert(1)>x", "run1", "run2", "run3", "run4", "run5"]
    assert page.troubles == []
    page.close()


def test_the_axis_is_switched_and_the_picture_is_there(chromium, report, tmp_path) -> None:
    page = chromium.open(report.as_uri())
    page.wait_for(f"{PLOT} && {PLOT}.querySelector('.main-svg')")
    steps = page.js(f"{PLOT}.data.map(trace => [...trace.x])")
    assert steps == [[3, 6, 9, 12]] * 6
    assert page.js(f"{PLOT}.layout.xaxis.title.text") == "steps"
    page.click(".axes button", has="FLOPs")
    flops = page.js(f"{PLOT}.data.map(trace => [...trace.x])")
    assert all(x > 1e6 for line in flops for x in line)
    assert page.js(f"{PLOT}.layout.xaxis.title.text") == "FLOPs"
    page.click(".axes button", has="log x")
    assert page.js(f"{PLOT}.layout.xaxis.type") == "log"
    assert page.colours(page.picture(tmp_path / "report.png", settle=0.5)) > 100

    before = page.js(f"{PLOT}.layout.font.color")
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.wait_for(f"{PLOT}.layout.font.color !== {json.dumps(before)}")
    assert page.troubles == []
    page.close()


def test_nothing_is_asked_of_a_network(chromium, report) -> None:
    page = chromium.open("about:blank")
    page.call("Network.enable")
    page.go(report.as_uri())
    page.wait_for("document.querySelectorAll('.plot .main-svg').length > 2")
    asked = [
        event["params"]["request"]["url"]
        for event in chromium.events
        if event.get("sessionId") == page.session and event.get("method") == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert asked
    page.close()


def test_a_long_table_can_be_filtered(chromium, tmp_path) -> None:
    from lit_tfm.reports.page import Table
    from lit_tfm.reports.page import page as make

    rows = [[f"run{i}", "adamw" if i % 2 else "muon", None if i == 3 else i / 7] for i in range(30)]
    (tmp_path / "table.html").write_text(make("Runs", [Table(["run", "optimizer", "loss"], rows)]))
    page = chromium.open((tmp_path / "table.html").as_uri())
    shown = "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).length"
    assert page.js(shown) == 30
    page.js("document.querySelector('.filter').focus()")
    page.call("Input.insertText", text="adamw run2")
    assert page.js(shown) == 5
    page.click("thead th button", has="loss")
    page.click("thead th button", has="loss")
    assert page.js(COLUMN.format(0))[-1] == "run3"  # what is missing is last, whichever way round
    page.close()
