"""Workers and the processes of trials: every way a trial can end, and what is kept of it."""

import json
import time
from pathlib import Path

import objectives
import optuna
import pytest
from optuna.trial import TrialState

from lit_tfm.search.supervisor import run_sweep


def record(folder: Path, number: int) -> dict:
    return json.loads((folder / "trials" / f"{number:04d}" / "trial.json").read_text())


def test_a_sweep_runs_its_trials_and_finds_the_best(a_sweep) -> None:
    swept = run_sweep(a_sweep("n_trials=6", "workers=2"), objectives.distance, quiet=True)
    assert swept.status == "done"
    assert swept.exit_status == 0
    assert [trial.number for trial in swept.study.trials] == list(range(6))
    assert all(trial.state == TrialState.COMPLETE for trial in swept.study.trials)
    for trial in swept.study.trials:
        told = record(swept.folder, trial.number)
        assert told["state"] == "complete"
        assert told["params"] == trial.params
        assert told["attempts"] == 1
        assert told["value"] == trial.value
        assert told["started"] < told["ended"]
    assert (swept.folder / "report.html").exists()


def test_every_kind_of_end_has_its_reason_and_the_others_go_on(a_sweep) -> None:
    swept = run_sweep(
        a_sweep("n_trials=10", "workers=2", "trial_timeout=2s"), objectives.troubled, quiet=True, pages=False
    )
    trials = swept.study.trials
    assert [trial.state for trial in trials if trial.number in (0, 9)] == [TrialState.COMPLETE] * 2
    expected = {
        1: ("crash", "crashed: ValueError: a shape does not fit"),
        2: ("nan", "not a number: val/loss is nan"),
        3: ("oom", "can't allocate memory"),
        4: ("timeout", "time-out: ran longer than trial_timeout=2 s"),
        5: ("refused", "refused: data.path=nowhere: there is no such folder"),
        6: ("killed", "killed by SIGKILL, perhaps out of memory"),
        7: ("refused", "metric=val/loss: this run does not measure it; there is train/loss"),
        8: ("crash", "ended with status 3"),
    }
    for number, (kind, reason) in expected.items():
        told, attrs = record(swept.folder, number), trials[number].user_attrs
        assert trials[number].state == TrialState.FAIL
        assert told["state"] == "failed"
        assert told["kind"] == attrs["kind"] == kind
        assert reason in told["reason"]
        assert told["reason"] == attrs["reason"]
    assert "in troubled" in (swept.folder / "trials" / "0004" / "error.txt").read_text()  # where it hung
    errors = {number: (swept.folder / "trials" / f"{number:04d}" / "error.txt") for number in expected}
    assert "ValueError: a shape does not fit" in errors[1].read_text()
    assert "Traceback" in errors[1].read_text()
    assert "objectives.py" in errors[3].read_text()
    assert errors[6].exists()
    assert errors[8].exists()


def test_failures_are_tried_again_as_told_and_out_of_memory_with_smaller_batches(a_sweep) -> None:
    settings = a_sweep("n_trials=4", "retries={crash: 1, oom: 1}", "metric=[val/loss,val/accumulate]",
                       "direction=[minimize,minimize]")  # fmt: skip
    swept = run_sweep(settings, objectives.fails_once, quiet=True, pages=False)
    assert [trial.state for trial in swept.study.trials] == [TrialState.COMPLETE] * 4
    assert [trial.values[1] for trial in swept.study.trials] == [1, 2, 1, 2]
    for number in range(4):
        told = record(swept.folder, number)
        assert told["attempts"] == 2
        assert len(told["failures"]) == 1
        assert told["failures"][0]["kind"] == ("oom" if number % 2 else "crash")


def test_several_objectives(a_sweep) -> None:
    settings = a_sweep("metric=[val/loss,seconds]", "direction=[minimize,maximize]")
    swept = run_sweep(settings, objectives.two_goals, quiet=True, pages=False)
    assert [len(trial.values) for trial in swept.study.trials] == [2] * 4
    assert swept.study.directions == [optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE]


def test_rungs_are_reported_and_the_pruner_obeyed(a_sweep) -> None:
    settings = a_sweep("n_trials=5", "pruner={_target_: optuna.pruners.MedianPruner, n_startup_trials: 1}")
    swept = run_sweep(settings, objectives.reports, quiet=True, pages=False)
    states = [trial.state for trial in swept.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED] * 2 + [TrialState.COMPLETE]
    assert swept.study.trials[0].intermediate_values == {1: 1.0, 2: 1 / 2, 3: 1 / 3, 4: 1 / 4}
    assert swept.study.trials[1].intermediate_values == {1: 11.0}
    assert swept.study.trials[1].value == 11.0
    assert record(swept.folder, 1)["state"] == "pruned"


def test_a_trial_of_several_seeds_reports_each_and_counts_their_mean(a_sweep) -> None:
    pytest.importorskip("scipy", reason="WilcoxonPruner needs scipy")
    words = ("n_trials=6", "seeds=[1,2,3,4,5,6]", "pruner={_target_: optuna.pruners.WilcoxonPruner}")
    swept = run_sweep(a_sweep(*words), objectives.by_seed, quiet=True, pages=False)
    good = [trial for trial in swept.study.trials if trial.params["optimizer.lr"] >= 0.01]
    bad = [trial for trial in swept.study.trials if trial.params["optimizer.lr"] < 0.01]
    first_good = min(trial.number for trial in good)
    assert all(trial.state == TrialState.COMPLETE and trial.value == 3.5 for trial in good)
    pruned = [trial for trial in bad if trial.number > first_good]
    assert pruned
    assert all(trial.state == TrialState.PRUNED for trial in pruned)
    assert good[0].intermediate_values == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6}


def test_the_same_command_goes_on_and_n_trials_is_a_total(a_sweep) -> None:
    first = run_sweep(a_sweep("n_trials=2"), objectives.distance, quiet=True, pages=False)
    kept = {number: record(first.folder, number) for number in range(2)}
    again = run_sweep(a_sweep("n_trials=2"), objectives.distance, quiet=True, pages=False)
    assert len(again.study.trials) == 2
    assert again.status == "done"
    more = run_sweep(a_sweep("n_trials=3"), objectives.distance, quiet=True, pages=False)
    assert len(more.study.trials) == 3
    assert {number: record(first.folder, number) for number in range(2)} == kept


def test_a_sweep_ends_at_its_timeout_and_can_go_on(a_sweep) -> None:
    began = time.monotonic()
    swept = run_sweep(a_sweep("n_trials=500", "timeout=4s"), objectives.sleeps, quiet=True, pages=False)
    assert swept.status == "timeout"
    assert swept.exit_status == 0
    assert time.monotonic() - began < 60
    left = [trial for trial in swept.study.trials if trial.state == TrialState.RUNNING]
    assert all(trial.user_attrs["holder"]["released"] for trial in left)
    ended = len(swept.study.trials) - len(left)
    assert run_sweep(a_sweep(f"n_trials={ended + 1}"), objectives.distance, quiet=True, pages=False).status == "done"


@pytest.mark.parametrize("sampler", ["BruteForceSampler", "GridSampler"])
def test_a_sampler_that_has_no_further_point_ends_the_sweep(a_sweep, sampler: str) -> None:
    words = ("n_trials=9", f"sampler._target_=optuna.samplers.{sampler}", "space.optimizer.lr=null", "workers=2")
    few = ("space.model.n_layers={choices: [1, 2, 3, 4]}", "constraints=['model.n_layers != 2']")
    settings = a_sweep(*words, *few, "fixed.optimizer.lr=0.1")
    swept = run_sweep(settings, objectives.distance, quiet=True, pages=False)
    assert swept.status == "exhausted"
    assert sorted(trial.params["model.n_layers"] for trial in swept.study.trials) == [1, 3, 4]


def test_a_sampler_that_numbers_its_points_goes_on_with_them(a_sweep) -> None:
    pytest.importorskip("scipy", reason="QMCSampler needs scipy")
    settings = a_sweep("n_trials=5", "sampler._target_=optuna.samplers.QMCSampler")
    swept = run_sweep(settings, objectives.distance, quiet=True, pages=False)
    assert len({trial.params["optimizer.lr"] for trial in swept.study.trials}) == 5
