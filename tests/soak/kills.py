"""Kill a real run at random moments, resume it each time, and compare its end with that of one left alone.

    python tests/soak/kills.py --data WIKITEXT-2                       50 kills of bert_small
    python tests/soak/kills.py --data WIKITEXT-2 --ranks 2 --kills 20  of two ranks (bert_mini, FSDP2 in shards)

A life is `python -m lit_tfm.train ... output_dir=RUN resume=auto`, a process of its own with all its start-up. It is
ended by SIGKILL, SIGTERM or SIGUSR1 at a moment that a seed draws: in start-up, training, a validation or a save.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import psutil
from identical import assert_identical, differences
from safetensors import safe_open

from lit_tfm.callbacks.checkpoint_files import read, step_of

VAL_EVERY = 2  # optimizer steps; each validation saves
PATIENCE = 900  # seconds for one life
LOOK = 0.01
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
PHASES = {"start-up": 3, "training": 4, "validation": 3, "saving": 3}  # weights
OPTIONS = [
    *["experiment=bert_small", "budget=null", "data.batch_size=4", "data.val_limit=4", "model.dropout=0.1"],
    *["trainer.accelerator=cpu", "trainer.precision=32", "trainer.log_every=1", f"trainer.val_every={VAL_EVERY}"],
]
TWO = ["model=bert_mini", "trainer.strategy=fsdp", "trainer.devices=2", "++callbacks.checkpoints.sharded=true"]


@dataclass
class Life:
    number: int
    signal: str
    planned: str
    found: str
    step: int  # the last one logged
    saved: int  # the step of the checkpoint that is left
    status: int
    seconds: float


@dataclass
class Soak:
    folder: Path
    options: list[str]
    seed: int
    steps: int
    lives: list[Life] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.run = self.folder / "run"
        self.since, self.fewest = 0.0, 0  # of the life that is going on: its start, the fewest rows that were logged
        self.start_up = 5.0  # seconds; measured in the run that is left alone

    def start(self, run: Path) -> subprocess.Popen:
        words = [*self.options, f"trainer.max_steps={self.steps}", f"output_dir={run}", "resume=auto"]
        log = open(self.folder / "log.txt", "a")  # noqa: SIM115 (the child's)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "lit_tfm.train", *words]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def alone(self) -> Path:
        """The run that nobody kills; tells how long a start takes."""
        whole, began = self.folder / "whole", time.monotonic()
        process = self.start(whole)
        while process.poll() is None and not logged(whole):
            time.sleep(LOOK)
        self.start_up = time.monotonic() - began
        assert process.wait() == 0, f"see {self.folder / 'log.txt'}"
        return whole

    def kill(self, number: int, which: signal.Signals) -> None:
        """One life, from its start to its end."""
        began, self.since, self.fewest = time.monotonic(), time.time(), len(logged(self.run))
        near_the_end = self.saved() >= self.steps - 2 * VAL_EVERY
        phase = "start-up" if near_the_end else self.draw.choices(list(PHASES), list(PHASES.values()))[0]
        process = self.start(self.run)
        try:
            self.wait_for(phase, process)
            found, step = self.phase()
            if which is signal.SIGKILL:
                end_all(process.pid)
            else:
                process.send_signal(which)
            status = process.wait(PATIENCE)
        finally:
            if process.poll() is None:
                end_all(process.pid)
        # A signal that comes before the run has begun to train ends it as it ends any process.
        # So does one that comes when the last step is done.
        early_or_late = found == "start-up" or logged_step(self.run) >= self.steps
        allowed = {128 + which, -which} if early_or_late else {128 + which}
        assert status in ({-which} if which is signal.SIGKILL else allowed), (status, which, found)
        seconds = round(time.monotonic() - began, 1)
        self.lives.append(Life(number, which.name, phase, found, step, self.saved(), status, seconds))
        print(self.lives[-1], flush=True)

    def wait_for(self, phase: str, process: subprocess.Popen) -> None:
        """Until the moment has come."""
        began, steps = time.monotonic(), self.draw.randint(1, 3)
        # Short of the start-up's end, which may come sooner than it did when it was measured.
        wait = self.draw.uniform(0, 0.7 * self.start_up if phase == "start-up" else 0.2)
        first = None  # step at which this life began to train
        while process.poll() is None and time.monotonic() - began < PATIENCE:
            found, step = self.phase()
            if found != "start-up" and first is None:
                first = step
            if phase == "start-up" and time.monotonic() - began >= wait:
                break
            if first is not None and (found == phase if phase != "training" else step - first >= steps - 1):
                time.sleep(wait)
                break
            time.sleep(LOOK)
        assert process.poll() is None, f"ended by itself with {process.returncode}: see {self.folder / 'log.txt'}"

    def phase(self) -> tuple[str, int]:
        """What this life is doing, as far as its folder tells, and the last step it logged.

        A resume cuts off what an earlier life logged beyond its checkpoint: its own is what follows the fewest rows.
        """
        rows = logged(self.run)
        self.fewest = min(self.fewest, len(rows))
        last = logged_step(self.run)
        if written_since(self.run / "checkpoints" / ".last.ckpt.partial", self.since):
            return "saving", last
        if len(rows) <= self.fewest:
            return "start-up", last
        measured = any(row == (last, "val/loss") for row in rows)
        return "validation" if last % VAL_EVERY == 0 and not measured else "training", last

    def saved(self) -> int:
        steps = [step_of(self.run / "checkpoints" / name) for name in ("last.ckpt", "previous.ckpt")]
        return next((step for step in steps if step is not None), 0)

    def finish(self, whole: Path) -> None:
        assert self.start(self.run).wait() == 0, f"see {self.folder / 'log.txt'}"
        assert json.loads((self.run / "summary.json").read_text())["status"] == "finished"
        assert_identical(whole, self.run)
        best = [read(run / "checkpoints" / "best.ckpt") for run in (whole, self.run)]
        assert differences(*best, {"seconds", "_ran"}) == []
        for name in ("last", "best"):
            assert weights(whole / "checkpoints" / f"{name}.safetensors") == weights(
                self.run / "checkpoints" / f"{name}.safetensors"
            ), name

    def report(self) -> dict:
        redone = sum(max(0, life.step - life.saved) for life in self.lives)
        return {
            "kills": len(self.lives),
            "by signal": dict(Counter(life.signal for life in self.lives)),
            "by phase": dict(Counter(life.found for life in self.lives)),
            "steps of the run": self.steps,
            "steps done again": redone,
            "seconds of the killed lives": round(sum(life.seconds for life in self.lives)),
        }


def weights(path: Path) -> tuple[dict, dict[str, bytes]]:
    """What a file says of itself and the bytes of its tensors; the library writes the former in any order."""
    with safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def end_all(pid: int) -> None:
    """SIGKILL to a run and all its ranks, whatever their session, as by a machine that goes down."""
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def logged(run: Path) -> list[tuple[int, str]]:
    """(step, name) of each whole row of metrics.csv."""
    try:
        rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    except OSError:
        return []
    return [(int(row[0]), row[3]) for row in rows if len(row) == 5 and row[0].isdigit()]


def logged_step(run: Path) -> int:
    return max((step for step, _ in logged(run)), default=0)


def written_since(path: Path, moment: float) -> bool:
    """Also a killed save leaves its temporary name behind."""
    try:
        return path.stat().st_mtime >= moment
    except OSError:
        return False


def soak(folder: Path, data: Path, ranks: int, kills: int, steps: int, seed: int) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    options = [*OPTIONS, *(TWO if ranks == 2 else []), f"data.path={data}", f"cache_dir={folder / 'cache'}"]
    began, run = time.monotonic(), Soak(folder, options, seed, steps)
    whole = run.alone()
    signals = [SIGNALS[i % len(SIGNALS)] for i in range(kills)]
    run.draw.shuffle(signals)
    for number, which in enumerate(signals, 1):
        run.kill(number, which)
    run.finish(whole)
    return {**run.report(), "ranks": ranks, "seed": seed, "seconds in all": round(time.monotonic() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of WikiText-2")
    parser.add_argument("--folder", type=Path, default=Path("outputs/soak"), help="where the runs go")
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(
        json.dumps(
            soak(given.folder.resolve(), given.data.resolve(), given.ranks, given.kills, given.steps, given.seed)
        )
    )


if __name__ == "__main__":
    main()
