"""What a sweep costs beyond training: seconds a trial of real, tiny training; and 150 trials of a one-second objective.

    python benchmarks/sweep_overhead.py

A trial's cost is the time from its start to the next one's, less its training and validation (summary.json counts the
steps; a bare run of the same config in a warm process says what a run costs without a sweep). The goals: at most one
second a trial after the first, and 150 trials of one second by two workers in at most 100 seconds (75 would be none).
"""

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from lit_tfm.search.settings import load
from lit_tfm.search.supervisor import run_sweep, warm_up

YAML = """
experiment: bert_small
fixed:
  model: bert_tiny
  data: pydoc
  tokenizer: byte
  data.batch_size: 4
  data.block_size: 32
  data.val_limit: 4
  trainer.max_steps: 20
  trainer.val_every: 0.5
  model.n_layers: 1
  model.n_heads: 2
space:
  optimizer.lr: {low: 1e-4, high: 1e-1, log: true}
  model.d_model: {choices: [16, 32]}
"""


def second(cfg, callbacks) -> float:
    """The objective of one second."""
    time.sleep(1.0)
    return (cfg.optimizer.lr - 0.01) ** 2


def sweep(folder: Path, objective, *words: str) -> float:
    """Seconds from the command's call to its end; imports are warm."""
    path = folder / "overhead.yaml"
    path.write_text(YAML)
    settings = load([f"sweep={path}", f"output_dir={folder / 'sweep'}", f"cache_dir={folder / 'cache'}", *words])
    began = time.monotonic()
    run_sweep(settings, objective, quiet=True, pages=False)
    return time.monotonic() - began


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("sweep/trials/*/trial.json"))]


def real_training(trials: int) -> list[float]:
    """Seconds of each trial but the first that are not training, from its start to the start of the next."""
    with tempfile.TemporaryDirectory() as folder:
        sweep(Path(folder), None, f"n_trials={trials}", "workers=1")
        found = records(Path(folder))
        starts = [datetime.fromisoformat(record["started"]) for record in found]
        starts.append(datetime.fromisoformat(found[-1]["ended"]))
        trained = [
            json.loads(path.read_text())["seconds"] for path in sorted(Path(folder).glob("sweep/trials/*/summary.json"))
        ]
        spans = [(after - before).total_seconds() for before, after in pairwise(starts)]
        return [span - seconds for span, seconds in zip(spans, trained, strict=True)][1:]


def one_second(trials: int) -> tuple[float, int]:
    """(seconds of the whole sweep, bytes of its journal)."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = sweep(Path(folder), second, f"n_trials={trials}", "workers=2")
        assert len(records(Path(folder))) == trials
        return seconds, (Path(folder) / "sweep" / "study.journal").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=150, help="of the one-second objective")
    parser.add_argument("--real", type=int, default=10, help="trials of real training")
    given = parser.parse_args()
    warm_up()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if given.real:
        costs = real_training(given.real)
        print(f"beyond training, a trial after the first: median {median(costs):.2f} s, largest {max(costs):.2f} s")
    if given.trials:
        seconds, size = one_second(given.trials)
        print(
            f"{given.trials} trials of 1 s, workers=2: {seconds:.1f} s; journal {size / given.trials:.0f} bytes a trial"
        )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
