"""The pruning benchmark: what counts as reached, and that the script still runs, tiny."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sweep_pruning

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sweep_pruning.py"


def test_steps_of_pruned_trials_count_until_the_target_is_reached() -> None:
    found = sweep_pruning.Search([(81, 2.9), (9, None), (55, None), (81, 2.6), (81, 2.5)])
    assert found.steps == 307
    assert found.best == 2.5
    assert found.until(2.7).trials == found.trials[:4]
    assert found.until(2.7).steps == 226
    assert found.until(2.4) is None


def test_the_table_says_what_each_seed_took() -> None:
    random, pruned = sweep_pruning.Search([(81, 2.9), (81, 2.6)]), sweep_pruning.Search([(9, None), (81, 2.5)])
    text = sweep_pruning.table({1: (random, pruned)}, "python it", 81)
    assert "| 1 | 2 | 162 | 2.6000 | 2 | 1 | 90 | 2.5000 | 0.556 |" in text


@pytest.mark.slow
def test_it_runs(tmp_path, session_cache) -> None:
    tiny = ["--seeds", "1", "--trials", "2", "--steps", "9", "--chunk", "2", "--most", "2", "--dry"]
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), *tiny, f"cache_dir={session_cache}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| 1 | 2 | 18 |" in done.stdout
