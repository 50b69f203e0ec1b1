"""Nothing is lost: trials fail in every way, workers and trials are killed at random moments, the command is repeated.

At the end there are exactly n_trials, each in its own folder, each with one set of parameters, every failure with its
reason; and what was killed went on from its checkpoint.
"""

import csv
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import objectives
import pytest
from optuna.trial import TrialState

from lit_tfm.holding import birth
from lit_tfm.search.looking import look
from lit_tfm.search.supervisor import run_sweep

FAST = ("trainer.max_steps=40", "trainer.val_every=4", "data.val_limit=4", "data.batch_size=4", "data.block_size=32",
        "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "optimizer=adamw", "trainer.precision=32",
        "callbacks.samples=null", "callbacks.confusion=null", "callbacks.attention=null", "callbacks.projector=null",
        "callbacks.layout=null", "trainer.accelerator=cpu")  # fmt: skip
KILLS_OF_ONE = 3  # retries.crash is one more


class Monkey(threading.Thread):
    """Ends workers and trials at random moments, and notes what a trial had reached by then."""

    def __init__(self, folder: Path, seed: int, times: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.random, self.times = folder, random.Random(seed), times
        self.killed: dict[int, int] = {}
        self.reached: dict[int, list[str]] = {}  # trial -> lines of metrics.csv up to its last checkpoint
        self.inodes: dict[int, int] = {}
        self.done: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while len(self.done) < self.times and not self.over.wait(self.random.uniform(0.2, 0.7)):
            running = [found for found in self.trials() if self.killed.get(found[0], 0) < KILLS_OF_ONE]
            if not running:
                continue
            number, trial, worker = self.random.choice(running)
            whom, how = self.random.choice(
                [
                    (trial, signal.SIGKILL),
                    (worker, signal.SIGKILL),
                    (worker, signal.SIGTERM),
                    (os.getpid(), signal.SIGINT),
                ]
            )
            self.note(number)
            self.killed[number] = self.killed.get(number, 0) + 1
            try:
                os.kill(whom, how)
            except ProcessLookupError:
                continue
            who = {trial: "trial", worker: "worker"}.get(whom, "supervisor")
            self.done.append(f"{signal.Signals(how).name} to the {who} of {number}")
            if whom == os.getpid():
                time.sleep(1.0)  # two would end this test

    def trials(self) -> list[tuple[int, int, int]]:
        """(number, its process, its worker) of those that run now."""
        found = []
        for path in sorted(self.folder.glob("trials/*/trial.json")):
            record = json.loads(path.read_text())
            self.inodes.setdefault(record["number"], path.parent.stat().st_ino)
            pid, worker = record.get("pid"), int(record["worker"].rpartition("-")[2])
            if record["state"] == "running" and pid and birth(pid) == record["birth"] and birth(worker):
                found.append((record["number"], pid, worker))
        return found

    def note(self, number: int) -> None:
        folder = self.folder / "trials" / f"{number:04d}"
        checkpoint, metrics = folder / "checkpoints" / "last.ckpt", folder / "metrics.csv"
        if checkpoint.exists() and metrics.exists():
            lines = metrics.read_text().splitlines()
            validated = [int(row[0]) for row in csv.reader(lines[1:]) if len(row) == 5 and row[3] == "val/loss"]
            # The checkpoint of the last validation may be on its way still.
            until = validated[-2] if len(validated) > 1 else 0
            self.reached[number] = [line for line in lines[1:] if int(line.partition(",")[0]) <= until]


def chaos(settings, seed: int, kills: int) -> tuple[Monkey, int]:
    """Run the sweep under the monkey, and again until it is done: (monkey, how many times)."""
    monkey, times = Monkey(settings.folder, seed, kills), 0
    monkey.start()
    try:
        while True:
            times += 1
            assert times < 40, monkey.done
            if run_sweep(settings, objectives.faulty, quiet=True, pages=False).status == "done":
                return monkey, times
    finally:
        monkey.over.set()
        monkey.join()


def check(settings, monkey: Monkey) -> None:
    trials = look([f"sweep={settings.folder}"])[1].trials
    assert [trial.number for trial in trials] == list(range(settings.n_trials))
    assert all(trial.state.is_finished() for trial in trials)
    check_failures(settings.folder, trials, endless=settings.trial_timeout is not None)
    starts = [line.split() for line in (settings.folder / "starts.txt").read_text().splitlines()]
    for trial in trials:
        folder = settings.folder / "trials" / f"{trial.number:04d}"
        rates = {float(rate) for number, rate in starts if int(number) == trial.number}
        assert rates == {trial.params["optimizer.lr"]}
        assert folder.stat().st_ino == monkey.inodes.get(trial.number, folder.stat().st_ino)
        if trial.state == TrialState.COMPLETE:
            check_one_run(folder)
            lines = (folder / "metrics.csv").read_text().splitlines()
            kept = monkey.reached.get(trial.number, [])
            assert lines[1 : len(kept) + 1] == kept  # with their very seconds: this was not trained again


def check_failures(folder: Path, trials, endless: bool) -> None:
    expected = {1: "a shape does not fit", 2: "not a number", 3: "out of memory"}
    expected |= {4: "time-out"} if endless else {}
    for trial in trials:
        record = json.loads((folder / "trials" / f"{trial.number:04d}" / "trial.json").read_text())
        assert record["params"] == trial.params
        if trial.number in expected:
            assert trial.state == TrialState.FAIL
            assert expected[trial.number] in record["reason"]
            assert (folder / "trials" / f"{trial.number:04d}" / "error.txt").stat().st_size
        else:
            assert trial.state == TrialState.COMPLETE, (trial.number, record)


def check_one_run(folder: Path) -> None:
    """metrics.csv is of one run: steps rise, and none stands there twice."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [(int(row["step"]), row["name"]) for row in csv.DictReader(file)]
    assert len(set(rows)) == len(rows)
    assert [step for step, name in rows if name == "val/loss"] == list(range(4, 41, 4))
    assert json.loads((folder / "summary.json").read_text())["steps"] == 40


@pytest.fixture
def settings(a_sweep, session_cache):
    def made(n_trials: int, *words: str):
        retries = f"retries={{crash: {KILLS_OF_ONE + 1}, oom: 0, nan: 0, timeout: 0}}"
        return a_sweep(f"n_trials={n_trials}", "workers=2", f"cache_dir={session_cache}", retries, *FAST, *words)

    return made


def test_a_sweep_whose_trials_fail_and_whose_processes_are_killed_comes_to_its_end(settings) -> None:
    sweep = settings(8)
    monkey, _times = chaos(sweep, seed=1, kills=6)
    assert len(monkey.done) >= 2, monkey.done  # a fast machine is through sooner
    check(sweep, monkey)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_longer_one(settings, seed: int) -> None:
    sweep = settings(24, "trial_timeout=60s", "tags=[endless]")
    monkey, _times = chaos(sweep, seed=seed, kills=30)
    assert len(monkey.done) >= 15, monkey.done
    assert monkey.reached
    check(sweep, monkey)
