"""Does pruning pay? Training steps until a pruned sweep is as good as the best of an unpruned random search.

    OMP_NUM_THREADS=1 python benchmarks/sweep_pruning.py

For each seed, two sweeps through `run_sweep`, one trial after the other, over heads, layers, d_model and two learning
rates of a small decoder on the bytes of Python's own documentation: random search without a pruner, of as many trials
as sweeps/*.yaml have, whose best validation loss is the target; and TPE with successive halving, as in
sweeps/gpt_small.yaml, to which trials are added until one is trained to its end with that loss or a lower one. Both
draw the same points at first (TPE begins at random, from the same seed). All trials have the same batch and the same
budget in tokens, so steps are steps; those of pruned trials count.

The table goes into RESULTS.md beside this file. Started again, the command goes on with what is in --out.
"""

import argparse
import math
import os
import platform
import statistics
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from measure import publish
from optuna.trial import FrozenTrial, TrialState

from lit_tfm.hardware import device_name
from lit_tfm.runs import RunFolder
from lit_tfm.search.settings import load
from lit_tfm.search.supervisor import run_sweep

SPACE = """
experiment: gpt_small
metric: val/loss
direction: minimize
budget: {tokens} tokens # of each trial
fixed:
  model: gpt_tiny
  data: pydoc
  tokenizer: byte
  data.block_size: 64 # tokens
  data.batch_size: 8 # blocks
  data.val_limit: 64 # blocks
  trainer.val_every: 0.999 # rungs are validated at anyway
  callbacks.samples: null
  callbacks.attention: null
  callbacks.projector: null
  trainer.accelerator: cpu
  trainer.precision: 32
space:
  model.n_layers: {{low: 1, high: 3}}
  model.d_model: {{low: 32, high: 96, step: 32}}
  model.n_heads: divisors of model.d_model with head size in [16, 32]
  optimizer.lr: {{low: 1e-3, high: 1e-1, log: true}}
  optimizer.adamw_lr: {{low: 3e-4, high: 3e-2, log: true}}
"""
WAYS = {
    "random": """
rungs: [1]
sampler: {_target_: optuna.samplers.RandomSampler}
""",
    "pruned": """
# Early, and when the learning rate has come down a way: in the middle of its plateau a high one looks worse than it is.
rungs: [0.111, 0.667, 1]
sampler: {_target_: optuna.samplers.TPESampler, n_startup_trials: 20}
pruner: {_target_: optuna.pruners.SuccessiveHalvingPruner, min_resource: 0.111, reduction_factor: 4}
""",
}


@dataclass(frozen=True)
class Search:
    """One sweep of one seed: its trials in the order they ran, as (steps, validation loss or None where unfinished)."""

    trials: list[tuple[int, float | None]]

    @property
    def best(self) -> float:
        return min(value for _, value in self.trials if value is not None)

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.trials)

    def until(self, target: float) -> "Search | None":
        """The part up to the first trial that is as good as `target`."""
        for place, (_, value) in enumerate(self.trials):
            if value is not None and value <= target:
                return Search(self.trials[: place + 1])
        return None


def search(out: Path, way: str, seed: int, n_trials: int, steps: int, words: list[str]) -> Search:
    folder = out / f"{way}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    sweep = out / f"{way}.yaml"
    sweep.write_text(SPACE.format(tokens=steps * 8 * 64) + WAYS[way], encoding="utf-8")
    settings = load(
        [f"sweep={sweep}", f"name={way}-{seed}", f"output_dir={folder}", f"seed={seed}", f"n_trials={n_trials}", *words]
    )
    swept = run_sweep(settings, quiet=True, pages=False)
    if swept.exit_status:
        sys.exit(swept.exit_status)
    return Search(
        [told(settings.trial_folder(trial.number), trial) for trial in swept.study.get_trials(deepcopy=False)]
    )


def told(folder: Path, trial: FrozenTrial) -> tuple[int, float | None]:
    summary = RunFolder(folder).read_json("summary.json")
    return summary["steps"], trial.value if trial.state == TrialState.COMPLETE else None


def compare(arguments: argparse.Namespace, seed: int) -> tuple[Search, Search]:
    out, words = Path(arguments.out), arguments.words
    random = search(out, "random", seed, arguments.trials, arguments.steps, words)
    reached, n_trials = None, 0
    while reached is None and n_trials < arguments.most:
        n_trials += arguments.chunk
        whole = search(out, "pruned", seed, n_trials, arguments.steps, words)
        reached = whole.until(random.best)
    found = reached or whole
    print(f"seed {seed}: {found.steps / random.steps:.3f} of the steps{'' if reached else ', not reached'}", flush=True)
    return random, found


def table(pairs: dict[int, tuple[Search, Search]], command: str, steps: int) -> str:
    shares = [pruned.steps / random.steps for random, pruned in pairs.values()]
    lines = [
        f"{date.today().isoformat()}, {device_name('cpu')} of {os.cpu_count()} CPU cores that other programs shared; "
        f"Python {platform.python_version()}, torch {version('torch')}, optuna {version('optuna')}.",
        f"`{command}`; a whole trial is {steps} steps of 512 tokens.",
        "",
        "| seed | random search: trials | steps | best loss | pruned sweep: trials | whole ones | steps | best loss "
        "| share of the steps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (seed, (random, pruned)), share in zip(pairs.items(), shares, strict=True):
        whole = sum(value is not None for _, value in pruned.trials)
        reached = "" if pruned.best <= random.best else " (not reached)"
        lines.append(
            f"| {seed} | {len(random.trials)} | {random.steps:,} | {random.best:.4f} | {len(pruned.trials)} | {whole} "
            f"| {pruned.steps:,} | {pruned.best:.4f}{reached} | {share:.3f} |"
        )
    mean = math.exp(statistics.fmean(map(math.log, shares)))
    whole = sum(pruned.steps for _, pruned in pairs.values()) / sum(random.steps for random, _ in pairs.values())
    lines += [
        "",
        f"Share of the steps: geometric mean {mean:.3f}, median {statistics.median(shares):.3f}, all seeds together "
        f"{whole:.3f}, smallest {min(shares):.3f}, largest {max(shares):.3f}. The goal is a third.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="outputs/benchmarks/sweep_pruning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--trials", type=int, default=40, help="of the random search")
    parser.add_argument("--steps", type=int, default=81, help="of a whole trial")
    parser.add_argument("--chunk", type=int, default=10, help="trials added to the pruned sweep at a time")
    parser.add_argument("--most", type=int, default=80, help="trials after which the pruned sweep gives up")
    parser.add_argument("--dry", action="store_true", help="print the table only")
    parser.add_argument("words", nargs="*", help="further key=value of both sweeps, e.g. cache_dir=...")
    arguments = parser.parse_args()
    pairs = {seed: compare(arguments, seed) for seed in arguments.seeds}
    command = " ".join(["python benchmarks/sweep_pruning.py", *[a for a in sys.argv[1:] if not a.startswith("--dry")]])
    section = table(pairs, command, arguments.steps)
    publish("sweep_pruning", section, arguments.dry)


if __name__ == "__main__":
    main()
