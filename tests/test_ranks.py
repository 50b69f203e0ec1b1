"""One rank of several hangs, fails, is killed, runs out of memory or is asked to stop: all end, one says why."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from small_runs import NO_PICTURES, SMALL

from lit_tfm import last_word, launch
from lit_tfm.callbacks.watchdog import Place, sentence
from lit_tfm.errors import HUNG, UserError
from lit_tfm.last_word import LastWord

OPTIONS = [
    *["model=bert_tiny", "task=masked_lm", "data=text", *SMALL],
    *["trainer.max_steps=8", "trainer.val_every=4", "logger.tensorboard=null", *NO_PICTURES],
    *["trainer.devices=2", "task._target_=faulty.Faulty", "allow_targets=faulty"],
]
FAULTY = """
import math, os, signal, time
from pathlib import Path
import torch
from lit_tfm.tasks.masked_lm import MaskedLM

class Faulty(MaskedLM):
    def step(self, batch):
        kind, rank, step = os.environ["FAULT"].split()
        if self.training and self.global_rank == int(rank) and self.trainer.global_step == int(step):
            if kind == "poison":
                self.model.blocks[0].feed_forward.down.weight.detach().to_local()[0] = math.nan
            if kind == "hang":
                Path(__file__).with_name("hangs").touch()
                time.sleep(3600)
            if kind == "raise":
                raise ValueError("a defect")
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "memory" and len(batch["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if kind in signal.Signals.__members__:
                os.kill(os.getpid(), signal.Signals[kind])
        return super().step(batch)

class Bomb:
    def __init__(self):
        self.abort = os.abort

    def __del__(self):
        self.abort()

if os.environ["FAULT"].startswith("abort") and "RANK" in os.environ:
    torch.bomb = Bomb()
"""


class Ranks:
    """Starts two ranks with one fault, by lit_tfm itself or, as srun does, directly."""

    def __init__(self, folder: Path, cache: Path, text: Path) -> None:
        self.folder = folder / "run"
        (folder / "faulty.py").write_text(FAULTY)
        self.options = [*OPTIONS, f"cache_dir={cache}", f"data.path={text}", f"output_dir={self.folder}"]
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}

    def start(self, fault: str, *options: str, **env: str) -> subprocess.Popen:
        program = [sys.executable, "-m", "lit_tfm.train", *self.options, *options]
        env = {**self.env, "FAULT": fault, **env}
        return subprocess.Popen(program, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, fault: str, *options: str) -> tuple[int, str, str]:
        process = self.start(fault, *options)
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors

    def start_both(self, fault: str, *options: str) -> list[subprocess.Popen]:
        port = str(launch.free_port())
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [self.start(fault, *options, RANK=str(r), LOCAL_RANK=str(r), **place) for r in range(2)]

    def run_both(self, fault: str, *options: str) -> list[tuple[int, str]]:
        ranks = self.start_both(fault, *options)
        return [(rank.returncode, errors) for rank in ranks for _, errors in [rank.communicate(timeout=300)]]

    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    def saved(self) -> int:
        return torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


@pytest.fixture
def ranks(tmp_path, session_cache, text_folder) -> Ranks:
    return Ranks(tmp_path, session_cache, text_folder)


def test_the_rank_that_hangs_is_named(ranks) -> None:
    """Rank 1 sleeps in its forward pass; rank 0 waits for it in an exchange that would time out after hours."""
    ended = ranks.run_both("hang 1 2", "watchdog=4s")
    assert [status for status, _ in ended] == [HUNG, HUNG]
    said = [line for _, errors in ended for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, ended
    assert "rank 1 is behind at step 3, forward pass, in " in said[0]
    assert "faulty.py:15; the others wait at step 3, backward pass" in said[0]
    assert "faulty.py" in ended[1][1]  # its stack
    assert "--- rank 0, step 3, backward pass" in ended[0][1]
    assert ranks.summary()["status"] == "failed"


@pytest.mark.slow
def test_a_rank_that_hangs_speaks_for_itself_where_the_store_is_gone(ranks) -> None:
    """As where the machine of rank 0 is lost: it holds the store through which the ranks talk."""
    processes = ranks.start_both("hang 1 2", "watchdog=8s")
    while not (ranks.folder.parent / "hangs").exists():
        assert processes[1].poll() is None
        time.sleep(0.05)
    processes[0].kill()
    processes[0].communicate()
    _, errors = processes[1].communicate(timeout=120)
    assert processes[1].returncode == HUNG, errors
    assert "--- rank 1, step 3, forward pass" in errors
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, errors
    assert told[0].startswith("error: the run hangs: nothing was done for 8 s; it is at step 3, forward pass, in ")
    assert "rank 1 can't ask the others" in told[0]
    assert ranks.summary()["status"] == "failed"


@pytest.mark.slow
def test_a_weight_that_is_not_finite_in_one_shard_is_named(ranks) -> None:
    """The other rank has none: it computes the step again all the same, and must not be left alone in it."""
    # Written in a step, when its weights are gathered already: the next one has it.
    status, _, errors = ranks.run("poison 1 1", "trainer=fsdp", "trainer.devices=2", "task.bad_steps=2", "watchdog=20s")
    assert status == 2, errors
    assert "it appears first in the weight model.blocks.0.feed_forward.down.weight (rank 1" in errors


@pytest.mark.slow
def test_a_hang_is_told_once_by_the_process_that_started_the_ranks(ranks) -> None:
    status, _, errors = ranks.run("hang 0 5", "watchdog=4s", "trainer=fsdp")
    assert status == HUNG, errors
    assert errors.splitlines()[-1].startswith("error: the run hangs: nothing was done for 4 s; rank 0 is behind")
    assert errors.count("error: ") == 1
    assert errors.count("--- rank") == 2
    assert ranks.saved() == 4


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_defect_in_one_rank_is_told_once(ranks, strategy) -> None:
    status, _, errors = ranks.run("raise 1 6", f"trainer={strategy}", "trainer.devices=2")
    assert status == 1
    assert errors.startswith("rank 1 failed")
    assert errors.count("Traceback") == 1, errors
    assert errors.rstrip().endswith("ValueError: a defect")
    assert ranks.saved() == 4
    summary = ranks.summary()
    assert (summary["status"], summary["reason"]) == ("failed", "rank 1: ValueError: a defect")


@pytest.mark.slow
def test_a_rank_that_is_killed(ranks) -> None:
    status, _, errors = ranks.run("kill 1 6")
    assert status == 137
    assert errors.startswith("error: rank 1 was ended by SIGKILL")
    assert len(errors.splitlines()) == 1
    assert ranks.saved() == 4
    assert ranks.summary()["status"] == "failed"


def test_what_aborts_when_python_has_ended_is_not_reached(ranks) -> None:
    """As gloo's threads do now and then: of ranks that lit_tfm started, and that another did."""
    assert ranks.run("abort 9 9", "trainer.max_steps=2") == (0, ANY, "")
    assert ranks.summary()["status"] == "finished"
    ranks.options.append(f"output_dir={ranks.folder}-2")
    assert ranks.run_both("abort 9 9", "trainer.max_steps=2") == [(0, ""), (0, "")]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_rank_out_of_memory_makes_all_micro_batches_smaller(ranks, strategy) -> None:
    status, output, errors = ranks.run("memory 1 6", f"trainer={strategy}", "trainer.devices=2", "auto_batch=true")
    assert (status, errors) == (0, "")
    assert output.count("going on with trainer.accumulate=2") == 1
    summary = ranks.summary()
    assert (summary["status"], summary["accumulate"], summary["steps"]) == ("finished", 2, 8)
    rows = [line.split(",") for line in (ranks.folder / "metrics.csv").read_text().splitlines()]
    assert [int(row[0]) for row in rows if row[3] == "train/loss"] == list(range(1, 9))  # each once


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_one_rank_stops_both(ranks, number) -> None:
    status, output, errors = ranks.run(f"{number} 1 5")
    assert (status, errors) == (128 + signal.Signals[number], "")
    assert f"stopped by {number} at step 6; go on with:\npython -m lit_tfm.train resume={ranks.folder}" in output
    assert (ranks.summary()["status"], ranks.saved()) == ("stopped", 6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_before_the_ranks_train(ranks, number) -> None:
    """At any moment of the start: the status is the documented one, and nothing is said but that."""
    for wait in (2.0, 5.0, 8.0, 11.0):
        process = ranks.start("none 9 9", f"output_dir={ranks.folder}-{wait}", "trainer.max_steps=100000")
        time.sleep(wait)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (128 + number, -number), (wait, errors)
        assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_while_the_other_rank_is_not_there(ranks, number) -> None:
    """Found by the kill soak: the other had been stopped before the two met, and this one waited for it."""
    port = launch.free_port()
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0"}
    process = ranks.start("none 9 9", **place)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(60) == -number
    finally:
        process.kill()
        process.communicate()


# ---- without processes ---------------------------------------------------------------------------------------------


def test_the_first_word_counts(tmp_path) -> None:
    assert last_word.heard(tmp_path) is None
    first, second = (LastWord("refused", message, 2, rank) for rank, message in ((1, "cause"), (0, "consequence")))
    assert last_word.leave(tmp_path, first)
    assert not last_word.leave(tmp_path, second)
    assert last_word.heard(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == [last_word.FILE]
    last_word.forget(tmp_path)
    assert last_word.heard(tmp_path) is None


REPORT = """E1127 torch/distributed/elastic/multiprocessing/api.py:988] failed (exitcode: {status}) local_rank: 1
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Root Cause (first observed failure):
[0]:
  time      : 2026-11-27_21:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : {status} (pid: 7)
"""


@pytest.mark.parametrize(("status", "ended"), [(143, 143), (138, 138), (75, 75), (-9, 137), (-11, 139), (3, 1)])
def test_the_status_is_that_of_the_rank(status, ended, capsys) -> None:
    with pytest.raises((SystemExit, UserError)) as caught:
        launch._end_as_the_ranks(REPORT.format(status=status), [], 1)
    assert (caught.value.code if isinstance(caught.value, SystemExit) else caught.value.status) == ended


HERE, WAITS = "here.py:7", "torch/distributed/c10d.py:9"


@pytest.mark.parametrize(
    ("places", "answering", "said"),
    [
        ({0: "5 step 3, backward pass"}, {0: HERE}, "it is at step 3, backward pass, in here.py:7"),
        ({0: "5 a", 1: "5 a"}, {0: HERE, 1: HERE}, "all 2 ranks are at a, in here.py:7"),
        ({0: "5 a", 1: "5 a"}, {0: HERE, 1: WAITS}, "rank 0 is behind at a, in here.py:7; the others wait at a"),
        ({0: "5 a", 1: "4 b"}, {0: WAITS, 1: WAITS}, f"rank 1 is behind at b, in {WAITS}; the others wait at a"),
        ({0: "5 a", 1: "5 a"}, {0: HERE}, "rank 1 does not answer, last seen at a; the others wait at a"),
    ],
)
def test_what_the_watchdog_says(places, answering, said) -> None:
    read = {rank: Place.read(re.sub(" ", " 1 ", text, count=1).encode()) for rank, text in places.items()}
    assert sentence(read, answering, 60) == f"the run hangs: nothing was done for 60 s; {said}"
