"""FSDP2 on two processes equals one process, and the state of either goes on in the other."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("sharded_training.py")
spec = importlib.util.spec_from_file_location("sharded_training", SCRIPT)
sharded_training = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sharded_training)


def single(name):
    model = sharded_training.Tiny()
    optimizer = sharded_training.MAKERS[name](model.named_parameters())
    sharded_training.train(model, optimizer, 3)
    return model, optimizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every optimizer trained on one process, then on two."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in sharded_training.MAKERS:
        model, optimizer = single(name)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"{name}-single.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=300)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:  # when one fails, the other waits for it
            rank.kill()
    return folder


@pytest.mark.parametrize("name", sharded_training.MAKERS)
def test_sharded_equals_single_and_states_travel_both_ways(name, folder):
    model, optimizer = single(name)
    sharded_training.train(model, optimizer, 4)
    there = torch.load(folder / f"{name}-sharded.pt", weights_only=True)
    for key, expected in model.state_dict().items():
        torch.testing.assert_close(there["model"][key], expected, atol=1e-5, rtol=0, msg=lambda m, k=key: f"{k}: {m}")

    back = sharded_training.Tiny()
    back.load_state_dict(there["model"])
    returned = sharded_training.MAKERS[name](back.named_parameters())
    returned.load_state_dict(there["optimizer"])
    sharded_training.train(model, optimizer, 3)
    sharded_training.train(back, returned, 3)
    for key, expected in model.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], expected, atol=1e-5, rtol=0)
