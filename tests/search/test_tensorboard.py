"""The HParams page of a sweep, as a real TensorBoard serves it: every trial, how it ended, and its real metrics."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_tfm.launch import free_port
from lit_tfm.search import tensorboard
from lit_tfm.search.looking import look

MLM = ["experiment=bert_small", "data.block_size=32", "data.batch_size=8", "tokenizer.vocab_size=400"]
QUICK = ["trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", "data.val_limit=8", "budget=null"]


class Server:
    """TensorBoard's plugins over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, request: dict | None = None) -> dict:
        data = json.dumps(request).encode() if request is not None else None
        # As json: a form's body, urllib's default, is taken away before the plugin reads it.
        asked = urllib.request.Request(f"{self.address}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)

    def experiment(self) -> dict:
        return self.ask("data/plugin/hparams/experiment", {})

    def rows(self) -> dict[str, dict]:
        """Run -> {hparams, metrics, status}."""
        request = {
            "startIndex": 0,
            "sliceSize": 1000,
            "colParams": [],
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        }
        groups = self.ask("data/plugin/hparams/session_groups", request).get("sessionGroups", [])
        return {
            group["name"]: {
                "hparams": group["hparams"],
                "metrics": {m["name"]["tag"]: m["value"] for m in group.get("metricValues", [])},
                "status": group["sessions"][0].get("status"),
            }
            for group in groups
        }

    def runs(self) -> set[str]:
        return set(self.ask("data/runs"))


@contextmanager
def served(folder: Path, runs: int) -> Iterator[Server]:
    """A real TensorBoard on the loopback device, when it has read that many runs."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--reload_interval", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    server, until = Server(f"http://127.0.0.1:{port}"), time.monotonic() + 90
    try:
        while True:
            try:
                if len(server.runs()) >= runs:
                    break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(f"TensorBoard did not come up: {process.communicate()[0]}")
            time.sleep(0.3)
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def trial(folder: Path, number: int, state: str) -> Path:
    """A trial's folder before its run begins."""
    place = folder / "trials" / f"{number:04d}"
    place.mkdir(parents=True)
    (place / "trial.json").write_text(json.dumps({"number": number, "state": state}))
    return place


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, text_folder, session_cache) -> Path:
    """Two real trials of other shapes, a pruned one, one that crashed after a validation, one before its first step."""
    from lit_tfm import config
    from lit_tfm.train import train

    folder = tmp_path_factory.mktemp("sweep")
    base = [*MLM, *QUICK, f"data.path={text_folder}", "model.n_heads=2", "trainer.precision=32"]
    base += ["trainer.accelerator=cpu", f"cache_dir={session_cache}"]
    for number, (d_model, layers, state) in enumerate([(32, 1, "complete"), (64, 2, "pruned")]):
        place = trial(folder, number, "running")
        words = [*base, f"model.d_model={d_model}", f"model.n_layers={layers}", f"output_dir={place}"]
        result = train(config.compose(words), quiet=True)
        values = [result.best["val/loss"]] if state == "complete" else []
        searched = {"model.d_model": d_model, "model.n_layers": layers, "optimizer.lr": 0.01 * (number + 1)}
        tensorboard.finish_trial(place, state, searched, ["val/loss"], values)
    for number in (2, 3):
        place = trial(folder, number, "running")
        if number == 2:
            (place / "metrics.csv").write_text("step,seconds,tokens,name,value\n2,0.5,512,val/loss,6.5\n4,1.0,10")
        searched = {"model.d_model": 128, "model.n_layers": 3, "optimizer.lr": 0.5}
        tensorboard.finish_trial(place, "failed", searched, ["val/loss"])
    return folder


def test_every_trial_is_on_the_page(sweep: Path) -> None:
    with served(sweep, runs=4) as server:
        rows, experiment = server.rows(), server.experiment()
    assert sorted(rows) == [f"trials/{number:04d}" for number in range(4)]
    states = [rows[name]["hparams"]["State"] for name in sorted(rows)]
    assert states == ["complete", "pruned", "failed", "failed"]
    assert [rows[name]["status"] for name in sorted(rows)] == ["STATUS_SUCCESS"] * 2 + ["STATUS_FAILURE"] * 2
    summary = json.loads((sweep / "trials" / "0000" / "summary.json").read_text())
    best = rows["trials/0000"]["metrics"]["best/loss"]
    assert best == pytest.approx(summary["best"]["val/loss"], rel=1e-5)
    assert rows["trials/0001"]["hparams"]["model/d_model"] == 64
    assert rows["trials/0002"]["metrics"] == {"loss_by_tokens/val": 6.5}
    assert not rows["trials/0003"]["metrics"]  # it has its row all the same
    # The five columns that the page shows unasked: how it ended, then what was searched; the result first.
    assert [info["name"] for info in experiment["hparamInfos"]] == [
        "State",
        "model/d_model",
        "model/n_layers",
        "optimizer/lr",
    ]
    assert all(info["differs"] for info in experiment["hparamInfos"])
    assert experiment["metricInfos"][0]["name"]["tag"] == "best/loss"


@pytest.mark.slow
def test_every_trial_of_a_real_sweep_is_on_the_page(tmp_path: Path, text_folder: Path, session_cache: Path) -> None:
    """From the command to the page: complete, pruned and failed trials of two workers."""
    sweep = {
        "experiment": "bert_small",
        "n_trials": 10,
        "workers": 2,
        "fixed": {
            **{"model.d_model": 32, "model.n_heads": 2, "model.n_layers": 1, "trainer.accelerator": "cpu"},
            **{"data.path": str(text_folder), "data.batch_size": 8, "data.val_limit": 8, "tokenizer.vocab_size": 400},
            **{"trainer.max_steps": 8, "trainer.val_every": 0.25, "cache_dir": str(session_cache)},
        },
        "pruner": {"_target_": "optuna.pruners.PercentilePruner", "percentile": 10.0, "n_startup_trials": 1},
        # Blocks longer than the model's positions are refused when the run is built.
        "space": {"optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True}, "data.block_size": {"choices": [32, 4096]}},
    }
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(sweep))
    words = ["sweep=real.yaml", "output_dir=out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(tensorboard.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_tfm.sweep", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    _, study = look([f"sweep={tmp_path / 'out'}"])
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    told = {f"trials/{trial.number:04d}": states[trial.state.name] for trial in study.trials}
    assert len(told) == 10
    assert set(told.values()) == {"complete", "pruned", "failed"}
    with served(tmp_path / "out", runs=10) as server:
        rows = server.rows()
    assert {name: row["hparams"]["State"] for name, row in rows.items()} == told
    for trial in study.trials:
        row = rows[f"trials/{trial.number:04d}"]
        assert row["hparams"]["optimizer/lr"] == pytest.approx(trial.params["optimizer.lr"])
        if trial.state.name == "COMPLETE":
            assert row["metrics"]["best/loss"] == pytest.approx(trial.value, rel=1e-5)
        assert ("loss_by_tokens/val" in row["metrics"]) == (trial.state.name != "FAIL")
    assert "positions" in (tmp_path / "out" / "report.html").read_text()  # why those failed


def test_curves_lie_over_tokens(sweep: Path) -> None:
    for number in range(2):
        run = sweep / "trials" / f"{number:04d}"
        events = EventAccumulator(str(run)).Reload()
        drawn = [(event.step, event.value) for event in events.Scalars("loss_by_tokens/val")]
        rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
        measured = [(int(row[2]), float(row[4])) for row in rows if row[3] == "val/loss"]
        assert len(drawn) == 2
        assert drawn == [(tokens, pytest.approx(value, rel=1e-5)) for tokens, value in measured]
        clock = [event.wall_time for event in events.Scalars("loss_by_tokens/val")]
        assert clock == sorted(clock)


def test_a_trial_ends_once_on_the_page_however_often_it_is_told(tmp_path: Path) -> None:
    """A worker that died between the row and the study's record is followed by another."""
    place = trial(tmp_path, 0, "running")
    tensorboard.finish_trial(place, "failed", {"optimizer.lr": 0.1}, ["val/loss"])
    tensorboard.finish_trial(place, "complete", {"optimizer.lr": 0.1}, ["val/loss", "parameters"], [2.5, 1000.0])
    assert len(list(place.glob("events*"))) == 1
    events = EventAccumulator(str(place)).Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {
        "best/loss": 2.5,
        "best/parameters": 1000.0,
    }


def test_several_seeds_are_one_row_and_as_many_curves(tmp_path: Path) -> None:
    place = trial(tmp_path, 0, "running")
    for seed in (1, 2):
        run = place / f"seed-{seed}"
        run.mkdir()
        (run / "metrics.csv").write_text(f"step,seconds,tokens,name,value\n2,0.5,512,val/loss,{seed}.5\n")
    tensorboard.finish_trial(place, "complete", {"optimizer.lr": 0.1}, ["val/loss"], [2.0])
    rows = [path for path in tmp_path.rglob("events*") if b"session_start_info" in path.read_bytes()]
    assert [path.parent for path in rows] == [place]
    assert EventAccumulator(str(place)).Reload().Scalars("best/loss")[0].value == 2.0
    assert EventAccumulator(str(place / "seed-2")).Reload().Scalars("loss_by_tokens/val")[0].value == 2.5


def test_values_that_a_table_cannot_hold(tmp_path: Path) -> None:
    place = trial(tmp_path, 0, "running")
    odd = {"a": None, "b": True, "c": [1, 2], "d": math.nan, "e": "x" * 10_000, "f": 10**30}
    assert tensorboard.finish_trial(place, "complete", odd, ["val/loss"], [math.inf])
    assert "scalars" in EventAccumulator(str(place)).Reload().Tags()


def test_a_full_disk_loses_no_trial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert tensorboard.finish_trial(tmp_path / "file" / "0000", "complete", {}, ["val/loss"], [1.0]) is None


def test_names_over_tokens_stand_behind_the_first_columns() -> None:
    assert tensorboard.by_tokens("val/loss") == "loss_by_tokens/val"
    assert tensorboard.by_tokens("val/accuracy") == "metrics_by_tokens/accuracy"
    assert not re.search(r"[^\w/]", tensorboard.by_tokens("val/word_perplexity"))
    assert sorted(["loss/val", "best/loss", "loss_by_tokens/val"])[-1] == "loss_by_tokens/val"
