"""Stopped by a signal: a checkpoint, a true summary, an exit status; and going on ends as if nothing had been."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_tfm import config
from lit_tfm.train import train

OPTIONS = [
    "experiment=bert_small",
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "data.block_size=32",
    "data.batch_size=8",
    "data.val_limit=8",
    "tokenizer.vocab_size=400",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
    "trainer.max_steps=150",
    "trainer.val_every=50",
    "budget=null",
]


def start(folder: Path, cache: Path, text: Path, *options: str) -> subprocess.Popen:
    program = [sys.executable, "-m", "lit_tfm.train", *OPTIONS, f"cache_dir={cache}", f"data.path={text}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*program, f"output_dir={folder}", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(folder: Path, process: subprocess.Popen) -> None:
    metrics = folder / "metrics.csv"
    for _ in range(1200):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 6:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the run did not get going")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last.safetensors")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
    ids=lambda number: number.name,
)
def test_a_signal_ends_the_run_with_a_checkpoint_and_a_status(tmp_path, session_cache, text_folder, number) -> None:
    folder = tmp_path / "run"
    process = start(folder, session_cache, text_folder)
    wait_for_steps(folder, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert f"resume={folder}" in output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped"
    stopped_at = summary["steps"]
    assert 0 < stopped_at < 150
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == stopped_at

    if number is signal.SIGTERM:  # once is enough: what follows does not depend on the signal
        again = start(folder, session_cache, text_folder, f"resume={folder}", "output_dir=null")
        assert again.wait(timeout=120) == 0
        whole = start(tmp_path / "whole", session_cache, text_folder)
        assert whole.wait(timeout=120) == 0
        one, two = weights(tmp_path / "whole"), weights(folder)
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_child_of_a_fork_server_stops_as_a_process_of_its_own_does(
    tmp_path, session_cache, text_folder, number
) -> None:
    """As the trials of a sweep are."""
    folder = tmp_path / "run"
    given = [*OPTIONS, f"cache_dir={session_cache}", f"data.path={text_folder}", f"output_dir={folder}"]
    cfg = config.compose([*given, "trainer.max_steps=100000"])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lit_tfm.session"])
    child = context.Process(target=train, args=(cfg, True))
    child.start()
    for _ in range(1200):
        if (folder / "metrics.csv").exists() and len((folder / "metrics.csv").read_text().splitlines()) > 6:
            break
        assert child.is_alive()
        time.sleep(0.05)
    os.kill(child.pid, number)
    child.join(timeout=60)
    assert child.exitcode == 128 + number
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == summary["steps"]


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step(tmp_path, session_cache, text_folder) -> None:
    folder = tmp_path / "run"
    process = start(folder, session_cache, text_folder, "trainer.strategy=ddp", "trainer.devices=2")
    wait_for_steps(folder, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped"
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == summary["steps"]
