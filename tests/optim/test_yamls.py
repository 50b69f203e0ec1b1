"""Every optimizer and schedule yaml makes what it names."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("path", sorted((CONF / "optimizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_optimizers(path, tiny, train):
    make = instantiate(OmegaConf.load(path))
    assert make.func.__name__ == path.stem
    model = tiny()
    losses = train(model, make(model.named_parameters()), 5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("path", sorted((CONF / "schedule").glob("*.yaml")), ids=lambda path: path.stem)
def test_schedules(path):
    factor = instantiate(OmegaConf.load(path))
    assert factor.func.__name__ == path.stem
    assert 0 <= factor(1.0) <= factor(0.3) <= 1
