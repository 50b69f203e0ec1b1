"""A trial reports at its rungs, once each, and ends in order where it is told to; all ranks at the same step."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_tfm import config
from lit_tfm.callbacks.trial import TrialReport
from lit_tfm.errors import UserError
from lit_tfm.launch import free_port
from lit_tfm.train import train

TINY = ["model.d_model=32", "model.n_layers=1", "model.n_heads=2", "trainer.precision=32", "trainer.accelerator=cpu"]
MLM = ["experiment=bert_small", "data.block_size=32", "data.batch_size=8", "data.val_limit=8", "trainer.log_every=1"]
# Ten steps.
BUDGET = [
    "tokenizer.vocab_size=400",
    "budget=2560 tokens",
    "trainer.max_epochs=null",
    "trainer.val_every=0.5",
]  # 10 steps


class Study:
    """Keeps what is reported; prunes at the steps it is given."""

    def __init__(self, *prune_at: int) -> None:
        self.reports, self.prune_at = [], prune_at

    def __call__(self, step: int, value: float) -> bool:
        self.reports.append((step, value))
        return step in self.prune_at

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.reports]


@pytest.fixture
def trial(tmp_path, session_cache, text_folder):
    """Trains with a report to `study`; returns the result."""

    def start(study, *overrides: str, rungs=None, metric="val/loss", folder="trial"):
        given = [*TINY, *MLM, *BUDGET, f"cache_dir={session_cache}", f"data.path={text_folder}"]
        if not any(o.startswith("resume=") for o in overrides):
            given.append(f"output_dir={tmp_path / folder}")
        return train(config.compose([*given, *overrides]), quiet=True, callbacks=[TrialReport(study, metric, rungs)])

    return start


def values_of(folder: Path, name: str) -> dict[int, float]:
    with open(folder / "metrics.csv", newline="") as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == name}


def test_every_validation_is_a_rung_unless_rungs_are_told(trial) -> None:
    study = Study()
    result = trial(study)
    assert result.status == "finished"
    assert study.steps == [1280, 2560]
    assert [value for _, value in study.reports] == pytest.approx(list(values_of(result.folder, "val/loss").values()))


def test_rungs_are_validated_at_and_named_alike_whatever_the_batch(trial) -> None:
    for batch in (8, 5):
        study = Study()
        given = [f"data.batch_size={batch}", "trainer.val_every=0.999"]
        result = trial(study, *given, rungs=[0.1, 0.33, 1.0], folder=f"of-{batch}")
        assert study.steps == [256, 844, 2560]
        reached = list(values_of(result.folder, "val/loss"))
        assert reached[:2] == [math.ceil(share * 2560 / (batch * 32)) for share in (0.1, 0.33)]


def test_of_rungs_passed_together_the_last_is_reported(trial) -> None:
    study = Study()
    trial(study, "data.batch_size=40", rungs=[0.1, 0.2, 0.45, 0.6])  # two steps
    assert study.steps == [2560 * 45 // 100, 2560 * 6 // 10]


def test_a_pruned_trial_ends_in_order(trial) -> None:
    study = Study(512)
    result = trial(study, "test=true", rungs=[0.1, 0.2, 0.4])
    assert result.status == "pruned"
    assert study.steps == [256, 512]
    summary = json.loads((result.folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["tokens"]) == ("pruned", 2, 512)
    assert summary["best"]["val/loss"] == min(value for _, value in study.reports) == result.best["val/loss"]
    assert not any(name.startswith("test/") for name in result.metrics)
    assert list(values_of(result.folder, "train/loss")) == [1, 2], "trained on after the answer"
    assert torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_pruned_trial_that_was_killed_before_it_could_say_so_is_pruned_still(trial) -> None:
    first = trial(Study(512), rungs=[0.2, 0.4])
    summary = json.loads((first.folder / "summary.json").read_text())
    (first.folder / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    study = Study()
    again = trial(study, f"resume={first.folder}", rungs=[0.2, 0.4])
    assert (again.status, again.summary["steps"], study.reports) == ("pruned", 2, [])
    assert again.best == first.best


def test_a_resumed_trial_reports_no_rung_twice(trial) -> None:
    whole, first, second = Study(), Study(), Study()
    every = "++callbacks.checkpoints.every=6"  # between the rungs at 4 and 8
    shares = [0.4, 0.8, 1.0]
    folder = trial(whole, every, rungs=shares, folder="whole").folder
    part = trial(first, every, rungs=shares).folder / "checkpoints" / "step-6.ckpt"
    again = trial(second, f"resume={part}", rungs=shares)
    assert whole.steps == first.steps == [1024, 2048, 2560]
    assert second.reports == whole.reports[1:]
    assert again.status == "finished"
    assert values_of(again.folder, "val/loss") == values_of(folder, "val/loss")


def test_the_end_is_reported_but_not_pruned(trial) -> None:
    study = Study(2560)
    assert trial(study, rungs=[1.0]).status == "finished"
    assert study.steps == [2560]


def test_without_a_budget_rungs_are_thousandths_of_the_run(trial) -> None:
    study = Study()
    trial(study, "budget=null", "trainer.max_steps=4", rungs=[0.25, 0.5])
    assert study.steps == [250, 500]


def test_a_metric_that_is_no_number_is_reported_as_such(trial, tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_metric.py").write_text(
        "from lit_tfm.tasks.masked_lm import MaskedLM\n"
        "class Broken(MaskedLM):\n"
        "    def report(self, means, stage):\n"
        "        return {**super().report(means, stage), 'odd': float('nan')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    study = Study()
    result = trial(study, "task._target_=broken_metric.Broken", "allow_targets=broken_metric", metric="val/odd")
    assert result.status == "finished"
    assert study.steps == [1280, 2560]
    assert all(math.isnan(value) for _, value in study.reports)


def test_a_metric_that_is_not_measured_is_told_with_those_that_are(trial) -> None:
    with pytest.raises(UserError, match=r"metric=val/accuracy.* there is .*val/loss"):
        trial(Study(), metric="val/accuracy")


def test_callbacks_are_not_lost_on_the_way_to_ranks(trial) -> None:
    with pytest.raises(UserError, match="callbacks can't be handed to ranks"):
        trial(Study(), "trainer.devices=2", "trainer.strategy=ddp")


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_ranks_end_at_the_same_step(tmp_path, session_cache, text_folder, strategy) -> None:
    """Only rank 0 has the answer."""
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    given = [*TINY, *MLM, *BUDGET, f"cache_dir={session_cache}", f"data.path={text_folder}", "trainer.devices=2"]
    given += [f"output_dir={tmp_path / 'run'}", f"trainer.strategy={strategy}"]
    script = Path(__file__).with_name("pruned_run.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*program, script, tmp_path, *given], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert [step for step, _ in one["reports"]] == [512, 1024]
    assert two["reports"] == []
    assert (one["status"], one["step"]) == (two["status"], two["step"]) == ("pruned", 4)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("pruned", 4)
