"""A sweep's pages in a browser: report.html with its figures and tables, TensorBoard's HParams, Optuna's dashboard.

The sweep is a real study with the folders of its trials, of which some were pruned and some failed.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
import yaml

from lit_tfm.launch import free_port
from lit_tfm.search import report, tensorboard
from lit_tfm.search.storage import connect

EVIL = "<img src=x onerror=window.hacked=1></script><script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Fourteen trials: every fifth is pruned, every seventh fails."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"metric": "val/loss", "direction": "minimize", "n_trials": 14}))
    (folder / "command.txt").write_text("python -m lit_tfm.sweep sweep=small\n")
    study = optuna.create_study(study_name="small", storage=connect(None, folder))
    for number in range(14):
        trial = study.ask()
        width = trial.suggest_categorical("model.d_model", [32, 64, 128])
        rate = trial.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
        trial.suggest_categorical("optimizer", ["adamw", "muon", "<b>lion</b>"])
        run = folder / "trials" / f"{number:04d}"
        run.mkdir(parents=True)
        state = "pruned" if number % 5 == 4 else "failed" if number % 7 == 6 else "complete"
        losses = [9.0 - step * (width / 128 + rate) for step in range(1, 3 if state == "pruned" else 5)]
        lines = [f"{10 * i},{i}.0,{1000 * i},val/loss,{loss}" for i, loss in enumerate(losses, 1)]
        (run / "metrics.csv").write_text("\n".join(["step,seconds,tokens,name,value", *lines]) + "\n")
        (run / "summary.json").write_text(json.dumps({"tokens": 4000, "steps": 40, "seconds": 4.0}))
        (run / "trial.json").write_text(json.dumps({"number": number, "reason": EVIL if state == "failed" else ""}))
        if state == "complete":
            study.tell(trial, losses[-1])
        else:
            told = {"pruned": optuna.trial.TrialState.PRUNED, "failed": optuna.trial.TrialState.FAIL}[state]
            for step, loss in enumerate(losses, 1):
                trial.report(loss, 1000 * step)
            study.tell(trial, state=told)
        values = losses[-1:] if state == "complete" else []
        tensorboard.finish_trial(run, state, trial.params, ["val/loss", "score"], [*values, *values])
    report.write(folder, study)
    return folder


@pytest.fixture(scope="module")
def server():
    """`server("tensorboard.main", "--logdir", ...)` -> its address on the loopback device, when it answers."""
    processes = []

    def start(*words: str, probe: str = "/") -> str:
        port = free_port()
        command = [sys.executable, *words, "--port", str(port), "--host", "127.0.0.1"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        processes.append(process)
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            assert process.poll() is None, f"{words[:2]} ended"
            try:
                urllib.request.urlopen(address + probe, timeout=5).read()
                return address
            except OSError:
                assert time.monotonic() < until, f"{words[:2]} did not come up"
                time.sleep(0.2)

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_report_draws_sorts_and_filters(chromium, sweep: Path, tmp_path: Path) -> None:
    page = chromium.open((sweep / "report.html").as_uri())
    page.wait_for("document.querySelectorAll('.plot .main-svg').length >= 6")
    assert page.js("performance.getEntriesByType('resource').filter(e => e.name.startsWith('http')).length") == 0
    assert not page.js("window.hacked")
    assert EVIL in page.text()
    assert page.js("document.querySelectorAll('.plot')[0].querySelectorAll('.scatterlayer .trace').length") == 14
    # The table of all trials, by loss: first a click upwards, then one downwards; what has none stays last.
    trials = "[...document.querySelectorAll('table')].at(-2)"
    order = f"{trials}.tBodies[0].rows[0].cells[0].innerText"
    head = f"[...{trials}.tHead.rows[0].cells].find(cell => cell.innerText.startsWith('val/loss'))"
    page.js(f"{head}.firstElementChild.click()")
    best = page.js(order)
    page.js(f"{head}.firstElementChild.click()")
    assert page.js(order) != best
    shown = page.text()
    assert f"in trial {best}," in shown
    page.js("const f = document.querySelector('.filter'); f.value = 'pruned'; f.dispatchEvent(new Event('input'))")
    assert page.js(f"[...{trials}.tBodies[0].rows].filter(row => !row.hidden).length") == 2
    assert page.colours(page.picture(tmp_path / "report.png")) > 100
    assert not page.troubles


def test_the_hparams_page_shows_every_trial(chromium, sweep: Path, server, tmp_path: Path) -> None:
    address = server("-m", "tensorboard.main", "--logdir", str(sweep), probe="/data/runs")
    page = chromium.open(f"{address}/#hparams")
    text = page.wait_for_text("trials/0000", "trials/0013", "best/score", seconds=60)
    for word in ("State", "complete", "pruned", "failed", "model/d_model", "optimizer/lr"):
        assert word in text
    assert text.count("trials/00") >= 14
    assert page.colours(page.picture(tmp_path / "hparams.png")) > 50


def test_optuna_dashboard_opens_the_study(sweep: Path, server) -> None:
    """As docs/sweeps.md says."""
    pytest.importorskip("optuna_dashboard")
    run = "import sys; from optuna_dashboard._cli import main; main()"
    address = server("-c", run, str(sweep / "study.journal"), probe="/api/studies")
    studies = json.load(urllib.request.urlopen(f"{address}/api/studies", timeout=10))["study_summaries"]
    assert [study["study_name"] for study in studies] == ["small"]
    study = json.load(urllib.request.urlopen(f"{address}/api/studies/{studies[0]['study_id']}?after=0", timeout=10))
    states = [trial["state"] for trial in study["trials"]]
    assert {state: states.count(state) for state in set(states)} == {"Complete": 10, "Pruned": 2, "Fail": 2}
