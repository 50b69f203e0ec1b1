"""The table of a sweep: what it says of trials in every state, in 80 columns, whatever they are called."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from rich.cells import cell_len
from rich.console import Console

from lit_tfm.holding import birth, machine
from lit_tfm.search import outcomes, status
from lit_tfm.search.holders import Holder
from lit_tfm.search.storage import connect

NOON = datetime(2026, 11, 22, 12, 0)
SPACE = {
    "model.d_model": CategoricalDistribution([64, 128, 256]),
    "model.n_heads": IntDistribution(1, 8),
    "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
}


def settings(folder: Path, **changed) -> None:
    plain = {"metric": "val/loss", "direction": "minimize", "n_trials": 10, "workers": 2, "rungs": [0.25, 0.5, 1.0]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(plain | changed))


def add(
    study, folder: Path, state: str, values=None, minute: float = 0, took: float = 60, reported=None, **record
) -> Path:
    """A trial as the engine leaves it: in the study and in a folder of its own."""
    number = len(study.trials)
    draws = {"model.d_model": (64, 128, 256)[number % 3], "model.n_heads": 1 + number % 8, "optimizer.lr": 0.0123}
    trial = create_trial(
        state=TrialState[state],
        values=values,
        params=draws,
        distributions=SPACE,
        intermediate_values=reported or {},
    )
    trial.datetime_start = NOON + timedelta(minutes=minute)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=took) if state != "RUNNING" else None
    study.add_trial(trial)
    run = outcomes.trial_folder(folder, number)
    run.mkdir(parents=True)
    (run / "trial.json").write_text(json.dumps({"number": number, **record}))
    return run


def shown(folder: Path, study, minutes: float = 10) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(status.table(folder, study, NOON + timedelta(minutes=minutes)))
    return console.file.getvalue()


def study_of(name: str = "small", **options):
    return optuna.create_study(study_name=name, **options)


def test_counts_best_failures_and_time(tmp_path: Path) -> None:
    settings(tmp_path)
    study = study_of()
    add(study, tmp_path, "COMPLETE", [3.5])
    add(study, tmp_path, "COMPLETE", [2.25], minute=1)
    add(study, tmp_path, "PRUNED", minute=2, reported={100: 9.0})
    add(study, tmp_path, "FAIL", minute=3, reason="out of memory: 3 GiB", attempts=3)
    text = shown(tmp_path, study)
    assert "4 of 10 done: 2 complete, 1 pruned, 1 failed, 6 to come" in text
    assert "2.2500 in trial 1: d_model=128  n_heads=2  lr=0.0123" in text
    assert "out of memory: 3 GiB" in text
    assert "4 min from first to last" in text
    assert "about 3 min left" in text  # six trials of a minute, two workers


def test_a_running_trial_says_how_far_it_is(tmp_path: Path) -> None:
    settings(tmp_path, budget="2e6 tokens")
    study = study_of()
    run = add(study, tmp_path, "RUNNING", minute=8, reported={500_000: 7.125}, attempts=2)
    (run / "config.yaml").write_text("budget: 2e6 tokens\ntrainer: {max_steps: 100000}\n")
    (run / "metrics.csv").write_text("step,seconds,tokens,name,value\n9,1.0,800000,train/loss,6\n10,2.0,9000")
    text = shown(tmp_path, study)
    assert "40 %" in text
    assert "1 of 3" in text
    assert "7.1250" in text
    assert "(attempt 2)" in text
    assert "2 min" in text


@pytest.mark.parametrize(
    ("budget", "done"), [("2e6 tokens", 0.25), ("20s", 0.5), ("1m", 10 / 60), ("1e9 flops", 0.5), ("null", 0.1)]
)
def test_share_done_in_the_unit_of_the_budget(tmp_path: Path, budget: str, done: float) -> None:
    (tmp_path / "config.yaml").write_text(f"budget: {budget}\ntrainer: {{max_steps: 1000}}\n")
    (tmp_path / "metrics.csv").write_text("step,seconds,tokens,name,value\n100,10.0,500000,train/loss,6\n")
    (tmp_path / "summary.json").write_text('{"status": "running", "flops_per_token": 1000.0}')
    trial = outcomes.Outcome(0, "running", tmp_path)
    assert outcomes.share_done(trial) == pytest.approx(done)


def test_the_share_of_a_trial_of_several_seeds(tmp_path: Path) -> None:
    for seed in (1, 2, 10):
        run = tmp_path / f"seed-{seed}"
        run.mkdir()
        (run / "config.yaml").write_text("budget: null\ntrainer: {max_steps: 100}\n")
        (run / "metrics.csv").write_text("step,seconds,tokens,name,value\n50,10.0,50,train/loss,6\n")
        if seed < 10:
            (run / "summary.json").write_text('{"status": "finished"}')
    trial = outcomes.Outcome(0, "running", tmp_path)
    assert [path.name for path in trial.runs] == ["seed-1", "seed-2", "seed-10"]
    assert outcomes.share_done(trial, seeds=5) == pytest.approx(0.5)


def test_a_trial_whose_worker_is_gone_is_told_apart(tmp_path: Path) -> None:
    settings(tmp_path)
    study = study_of()
    gone = Holder("w", machine(), pid=2**22 - 1, birth=1.0, folder=str(tmp_path), attempt=3)
    here = Holder("w", machine(), pid=os.getpid(), birth=birth(os.getpid()), folder=str(tmp_path))
    for holder in (gone, here, replace(here, released=True)):
        add(study, tmp_path, "RUNNING")
        number = len(study.trials) - 1
        study._storage.set_trial_user_attr(study.trials[number]._trial_id, "holder", holder.record())
    found = outcomes.outcomes(tmp_path, study)
    assert [trial.interrupted for trial in found] == [True, False, True]
    assert [trial.attempts for trial in found] == [3, 1, 1]
    assert " ".join(shown(tmp_path, study).split()).count("goes on with it)") == 2


def test_broken_files_do_no_harm(tmp_path: Path) -> None:
    """A disk was full, or somebody edited: what can be told is told."""
    settings(tmp_path, rungs="x", seeds=3, workers=None, timeout=[])
    study = study_of()
    contents = [b"", b"\x00\xff", b"[]", b"{", b"1,2,3,4,5\n1,x,3,name,\x00\n", b"trainer: 7\nbudget: {}\n"]
    for place, content in enumerate(contents):
        run = add(study, tmp_path, "RUNNING", reported={100: float("nan")})
        for name in ("trial.json", "summary.json", "config.yaml", "metrics.csv"):
            (run / name).write_bytes(content)
        if place % 2:
            (run / "metrics.csv").write_bytes(b"step,seconds,tokens,name,value\n5,1.0,50,val/loss,2.5\n" + content)
        assert outcomes.curve(run, "val/loss")[:1] in ([], [outcomes.Point(5, 1.0, 50, 2.5)])
    assert "6 running" in shown(tmp_path, study)


def test_before_anything_has_ended(tmp_path: Path) -> None:
    settings(tmp_path)
    study = study_of()
    assert "no trial has begun" in shown(tmp_path, study)
    add(study, tmp_path, "FAIL", reason="no data")
    assert "no trial has been completed" in shown(tmp_path, study)


def test_a_folder_without_a_word_in_it_still_has_a_table(tmp_path: Path) -> None:
    study = study_of()
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=1.5, params={}, distributions={}))
    study.add_trial(create_trial(state=TrialState.FAIL))
    (tmp_path / "sweep.yaml").write_text("{half a")
    text = shown(tmp_path, study)
    assert "1 complete, 0 pruned, 1 failed" in text
    assert "no reason was recorded" in text


def test_failures_are_told_by_reason(tmp_path: Path) -> None:
    settings(tmp_path)
    study = study_of()
    for number in range(9):
        add(study, tmp_path, "FAIL", reason="time-out" if number % 4 else f"crashed: {number}")
    rows = [line.split() for line in shown(tmp_path, study).split("reason")[1].splitlines()[2:] if line.split()]
    assert rows[:2] == [["1", "8", "crashed:", "8"], ["6", "7", "time-out"]]
    assert rows[2:] == [["1", "4", "crashed:", "4"], ["1", "0", "crashed:", "0"]]


def test_several_objectives_show_the_front(tmp_path: Path) -> None:
    settings(tmp_path, metric=["val/loss", "parameters"], direction=["minimize", "minimize"])
    study = study_of(directions=["minimize", "minimize"])
    for loss, size in ((3.0, 900), (2.0, 2000), (3.5, 1000), (2.5, 1500)):
        add(study, tmp_path, "COMPLETE", [loss, size])
    text = shown(tmp_path, study)
    assert "3 trials that no other beats" in text
    rows = [line.split() for line in text.split("not beaten")[1].splitlines()[3:] if line.split()]
    assert [row[0] for row in rows[:3]] == ["1", "3", "0"]  # trial 2 is beaten by trial 0


def test_the_best_of_a_metric_to_maximize_is_the_largest(tmp_path: Path) -> None:
    settings(tmp_path, metric="val/accuracy", direction="maximize")
    study = study_of(direction="maximize")
    for value in (0.5, 0.75, 0.25):
        add(study, tmp_path, "COMPLETE", [value])
    text = shown(tmp_path, study)
    assert "val/accuracy, the higher the better" in text
    assert "0.7500 in trial 1" in text


def test_names_and_reasons_cannot_steer_the_terminal(tmp_path: Path) -> None:
    settings(tmp_path, metric="val/\x1b[2Jloss")
    study = study_of("evil\x1b]0;title\x07\x9b31m[bold red]name")
    evil = "\x1b[31mred\x1b[0m \x07\x08\r\n\u202etxt [/bold] \x00 end"
    add(study, tmp_path, "FAIL", reason=evil)
    add(study, tmp_path, "COMPLETE", [1.0])
    run = add(study, tmp_path, "RUNNING", worker=evil)
    (run / "config.yaml").write_text("\x1b[31m")
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(status.table(tmp_path, study, NOON))
    text = console.file.getvalue()
    assert not {c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)}
    assert "\u202e" not in text
    assert "red\\x1b[0m" in text
    assert "[/bold]" in text
    assert "[bold red]name" in text  # shown, not obeyed


def test_eighty_columns_hold_it(tmp_path: Path) -> None:
    settings(tmp_path, metric="val/" + "word_perplexity" * 3)
    study = study_of("a_sweep_with_a_name_that_somebody_made_very_long_indeed")
    for number in range(12):
        state = ("COMPLETE", "PRUNED", "FAIL", "RUNNING")[number % 4]
        values = [1e9 / (number + 1)] if state == "COMPLETE" else None
        add(study, tmp_path, state, values, reason="a reason of many words " * 20, reported={10**9: 1e30})
    assert max(cell_len(line.rstrip()) for line in shown(tmp_path, study).splitlines()) <= 80


def test_durations_as_a_person_says_them() -> None:
    said = {0: "0 s", 99: "99 s", 100: "2 min", 5400: "90 min", 9000: "2 h 30 min", 200_000: "2 d 7 h"}
    assert {seconds: status.duration(seconds) for seconds in said} == said


def test_status_from_another_terminal(tmp_path: Path) -> None:
    """From the folder alone, and without torch: it is asked often, and torch takes seconds to import."""
    settings(tmp_path, name="mine")
    study = study_of("mine", storage=connect(None, tmp_path))
    study.tell(study.ask(), 2.5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    command = [sys.executable, "-X", "importtime", "-m", "lit_tfm.sweep", f"sweep={tmp_path}", "--status"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 10 done: 1 complete" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "optuna" in imported
    assert not imported & {"torch", "lightning", "plotly", "matplotlib"}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # nothing was written
