"""Every test here draws from the same seed, whatever ran before it; and what several share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def anew():
    """No code of earlier tests: torch.compile gives a function up that it has compiled eight times."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
