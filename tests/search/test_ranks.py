"""A sweep whose trials are runs of two processes: rank 0 reports, all ranks end at the same step."""

import json
from pathlib import Path

import pytest
from optuna.trial import TrialState

from lit_tfm.search.supervisor import run_sweep

TRIALS = [
    "fixed.optimizer=adamw",
    "fixed.model.d_model=32",
    "fixed.model.n_layers=1",
    "fixed.model.n_heads=2",
    "fixed.data.block_size=32",
    "fixed.data.batch_size=7",
    "fixed.data.val_limit=8",
    "fixed.trainer.accelerator=cpu",
    "fixed.trainer.devices=2",
    "fixed.trainer.val_every=0.999",
    "budget=2240 tokens",  # ten steps of 7 * 32
    "rungs=[0.4,0.8]",
    # A loss above this at the first rung is that of a model that has learnt nothing.
    "pruner={_target_: optuna.pruners.ThresholdPruner, upper: 5.2}",
]


def summary(folder: Path, number: int) -> dict:
    return json.loads((folder / "trials" / f"{number:04d}" / "summary.json").read_text())


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_trial_of_two_processes_is_pruned_at_a_rung(a_sweep, session_cache, strategy) -> None:
    words = [*TRIALS, f"fixed.cache_dir={session_cache}", f"fixed.trainer.strategy={strategy}", "n_trials=1"]
    settings = a_sweep(*words, "space.optimizer.lr={choices:[1e-7,1e-6]}")
    (trial,) = run_sweep(settings, quiet=True, pages=False).study.trials
    log = (settings.folder / "trials" / "0000" / "log.txt").read_text()
    assert trial.state == TrialState.PRUNED, log
    assert list(trial.intermediate_values) == [896]  # 0.4 of the budget
    reached = summary(settings.folder, 0)
    assert (reached["status"], reached["steps"], reached["tokens"]) == ("pruned", 4, 896)


@pytest.mark.slow
def test_of_two_such_trials_the_better_one_is_trained_to_its_end(a_sweep, session_cache) -> None:
    words = [*TRIALS, f"fixed.cache_dir={session_cache}", "fixed.trainer.strategy=ddp", "n_trials=2"]
    grid = ["space.optimizer.lr={choices:[1e-7,3e-2]}", "sampler={_target_: optuna.samplers.BruteForceSampler}"]
    settings = a_sweep(*words, *grid)
    study = run_sweep(settings, quiet=True, pages=False).study
    ends = {trial.params["optimizer.lr"]: trial for trial in study.trials}
    assert (ends[1e-7].state, ends[3e-2].state) == (TrialState.PRUNED, TrialState.COMPLETE)
    assert list(ends[3e-2].intermediate_values) == [896, 1792]
    assert summary(settings.folder, ends[3e-2].number)["steps"] == 10
