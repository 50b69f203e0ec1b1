"""Loss, metrics and weights are means over all targets: the same for every number of micro-batches and ranks.

So are the texts that a model writes during training.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "exact_run.py"
NAMES = ("masked_lm", "causal_lm", "span_corruption", "pooled", "label_text")


def launch(out, strategy, *accumulates):
    """Results by number of micro-batches."""
    start = [sys.executable]
    if strategy != "one":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2]), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*start, str(SCRIPT), str(out), strategy, *map(str, accumulates)],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("reference") / "one.pt", "one", 1, 4)


def same(run, reference):
    for name in NAMES:
        a, b = run[name], reference[name]
        assert a["books"] == b["books"], name
        assert a["samples"] == b["samples"], name
        assert len(a["samples"]) == 2, name
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6), name
        assert a["metrics"] == pytest.approx(b["metrics"], rel=2e-6, abs=1e-6), name
        assert a["weights"].keys() == b["weights"].keys()
        for key, weight in a["weights"].items():
            difference = (weight - b["weights"][key]).abs().max()
            assert difference < 1e-6, f"{name} {key} {difference}"


def its_share_of_matrices(run, reference):
    """Of Muon on two ranks: each orthogonalises its share, and the weights are those of one process."""
    assert 0 < run["muon"]["done"] < reference["muon"]["done"]
    assert run["muon"]["parts"] == reference["muon"]["parts"]
    assert run["muon"]["parts"]["model.blocks.0.attention.qkv.weight"] == (16,) * 6
    torch.testing.assert_close(run["muon"]["weights"], reference["muon"]["weights"], atol=1e-4, rtol=0)


def test_accumulation(one_process):
    same(one_process[4], one_process[1])


def test_two_processes_and_accumulation(one_process, tmp_path):
    run = launch(tmp_path / "ddp.pt", "ddp", 2)[2]
    same(run, one_process[1])
    its_share_of_matrices(run, one_process[1])


@pytest.mark.slow
def test_sharded(one_process, tmp_path):
    run = launch(tmp_path / "fsdp.pt", "fsdp", 2)[2]
    same(run, one_process[1])
    its_share_of_matrices(run, one_process[1])
