"""A sweep that costs nothing to train: what it trains with is each test's own."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_tfm.search.settings import SweepConfig, load

sys.path.insert(0, str(Path(__file__).parent))  # objectives.py, for workers as well
os.environ.setdefault("OMP_NUM_THREADS", "1")

YAML = """
experiment: bert_small
n_trials: 4
fixed: {model: bert_tiny, data: pydoc, tokenizer: byte}
space:
  optimizer.lr: {low: 1e-4, high: 1e-1, log: true}
retries: 0
"""


@pytest.fixture
def a_sweep(tmp_path: Path) -> Callable[..., SweepConfig]:
    """`a_sweep("n_trials=9")`: its settings, with a folder of the test's own."""
    path = tmp_path / "tried.yaml"
    path.write_text(YAML)

    def settings(*words: str) -> SweepConfig:
        folder = [] if any(word.startswith("output_dir=") for word in words) else [f"output_dir={tmp_path / 'sweep'}"]
        return load([f"sweep={path}", *folder, *words])

    return settings
