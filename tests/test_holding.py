"""Two processes never train in one folder: the lock alone, and real runs that meet."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ranks
from interruption import Crash, Interrupt
from lightning import Callback
from small_runs import NO_PICTURES, SMALL

from lit_tfm import config, holding
from lit_tfm.errors import UserError
from lit_tfm.train import train

PROGRAM = """
import os, sys, time
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from lit_tfm.holding import share, take

folder, how, program = Path(sys.argv[1]), *sys.argv[2:]
hold = share(folder) if how == "share" else take(folder)
told = "ready"
if how == "forks" and os.fork() == 0:
    time.sleep(600)
if how == "starts":
    child = Popen([sys.executable, "-c", program, folder, "share", program], stdout=PIPE)
    child.stdout.readline()
    told = child.pid
if how == "hands on":
    told = Popen(["sleep", "600"], stdout=DEVNULL, pass_fds=[hold.handle]).pid
print(told, flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """`holder("take")`: a process that has the folder; those it starts are ended with the test."""
    started: list[subprocess.Popen] = []

    def start(how: str = "take") -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), how, PROGRAM]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_folder_is_one_process_and_free_when_that_is_killed(tmp_path: Path, holder) -> None:
    process = holder()
    assert process.stdout.readline() == "ready\n"
    assert holding.held(tmp_path)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"by another process \\(process {process.pid} on this machine\\)"):
        holding.take(tmp_path)
    process.kill()
    process.wait()
    assert not holding.held(tmp_path)
    hold = holding.take(tmp_path)
    assert time.monotonic() - began < 2
    hold.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["starts", "hands on"])
def test_what_a_dead_process_has_started_is_waited_for_and_then_named(tmp_path: Path, holder, monkeypatch, how) -> None:
    """As torchrun and its ranks, when the process that was typed gets SIGKILL."""
    process = holder(how)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert not holding.held(tmp_path)  # resume=auto goes on with this run, and no other, when they have ended
    monkeypatch.setattr(holding, "PATIENCE", 0.3)
    with pytest.raises(UserError, match=rf"process {child if how == 'starts' else process.pid} on") as refused:
        holding.take(tmp_path)
    assert refused.value.status == 2
    monkeypatch.setattr(holding, "PATIENCE", 30)
    os.kill(child, signal.SIGKILL)
    holding.take(tmp_path).close()


def test_a_fork_such_as_a_loaders_worker_keeps_nobody_out(tmp_path: Path, holder, monkeypatch) -> None:
    monkeypatch.setattr(holding, "PATIENCE", 0.3)
    process = holder("forks")
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    holding.take(tmp_path).close()


def test_the_file_stays_while_others_share_it(tmp_path: Path, holder, monkeypatch) -> None:
    monkeypatch.setattr(holding, "PATIENCE", 0.3)
    hold = holding.take(tmp_path)
    process = holder("share")
    assert process.stdout.readline() == "ready\n"
    hold.close()
    with pytest.raises(UserError, match=f"process {process.pid} on this machine"):
        holding.take(tmp_path)


def test_who_belongs_to_the_folder_has_it(tmp_path: Path) -> None:
    """A trial's process: its worker and itself share the folder before the run begins."""
    worker, trial = holding.take(tmp_path), holding.share(tmp_path)
    run = holding.take(tmp_path)
    run.close()
    assert holding.held(tmp_path)
    trial.close()
    with pytest.raises(UserError):
        holding.take(tmp_path)
    worker.close()


def test_a_disk_without_locks_keeps_nobody_from_training(masked, tmp_path, capsys, monkeypatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(holding, "fcntl", SimpleNamespace(**{**vars(fcntl), "flock": flock}))  # the cache's stay
    words = [*masked, f"output_dir={tmp_path / 'run'}", "trainer.max_steps=1"]
    assert train(config.compose(words)).status == "finished"
    assert capsys.readouterr().out.count("no lock can be had there") == 1


def test_a_link_in_place_of_the_lock_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / holding.LOCK).symlink_to(tmp_path / "mine")
    hold = holding.take(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "mine"
    assert hold.handle is None


# ---- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def masked(session_cache, text_folder) -> list[str]:
    words = ["experiment=bert_small", "data=text", f"data.path={text_folder}", f"cache_dir={session_cache}", *SMALL]
    return [*words, *NO_PICTURES, "logger.tensorboard=null", "trainer.max_steps=6", "trainer.val_every=2"]


class Meanwhile(Callback):
    """When a step begins, another process trains with `words`; `told` is how that ended."""

    def __init__(self, step: int, words: list[str]) -> None:
        self.step, self.words, self.told = step, words, None

    def on_train_batch_start(self, trainer, task, batch, batch_idx) -> None:
        if batch_idx + 1 == self.step:
            self.told = elsewhere(self.words)


def elsewhere(words: list[str]) -> str:
    """Train in a process of its own: its result's status, or what it was refused for."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(ranks.WARM)
    ours, theirs = context.Pipe()
    process = context.Process(target=_elsewhere, args=(os.getcwd(), words, theirs))
    process.start()
    assert ours.poll(120)
    process.join()
    return ours.recv()


def _elsewhere(folder: str, words: list[str], told) -> None:
    os.chdir(folder)
    try:
        told.send(train(config.compose(words), quiet=True).status)
    except UserError as error:
        told.send(str(error))


def steps(folder: Path) -> list[int]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [int(row[0]) for row in rows if row[3] == "train/loss"]


@pytest.mark.parametrize("moment", [2, 5])
def test_the_same_command_again_leaves_a_run_alone(masked, tmp_path, moment) -> None:
    """Before its first checkpoint, when `resume=auto` would clear the folder, and behind it."""
    words = [*masked, f"output_dir={tmp_path / 'run'}", "resume=auto"]
    second = Meanwhile(moment, words)
    assert train(config.compose(words), quiet=True, callbacks=[second]).status == "finished"
    assert second.told.startswith(f"{tmp_path / 'run'} is being trained by another process (process {os.getpid()} on")
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "run" / holding.LOCK).exists()


def test_auto_takes_no_run_that_is_being_trained(masked, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*masked, "name=mine", "resume=auto"]
    second = Meanwhile(4, words)
    first = train(config.compose(words), quiet=True, callbacks=[second])
    assert second.told == "finished"
    assert len(list(Path("outputs/mine").iterdir())) == 2  # it began a run of its own
    assert steps(first.folder) == [1, 2, 3, 4, 5, 6]


def test_a_crash_in_this_process_keeps_nobody_out(masked, tmp_path) -> None:
    words = [*masked, f"output_dir={tmp_path / 'run'}", "resume=auto"]
    with pytest.raises(Crash):
        train(config.compose(words), quiet=True, callbacks=[Interrupt("step@3", "crash")])
    assert elsewhere(words) == "finished"


@pytest.mark.slow
def test_ranks_that_outlive_the_process_that_was_typed(masked, tmp_path) -> None:
    """SIGKILL to that one; torchrun and two ranks go on."""
    folder = tmp_path / "run"
    words = [*masked, "trainer.devices=2", "trainer.strategy=ddp"]
    command = [sys.executable, "-m", "lit_tfm.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [*command, *words, f"output_dir={folder}", "trainer.max_steps=1000000"]
    process = subprocess.Popen(started, env=environment, stdout=subprocess.DEVNULL)
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    try:
        going_on = [pid for pid in holding._lockers(folder / holding.LOCK) if holding.birth(pid) is not None]
        assert len(going_on) == 2
        again = [*command, f"resume={folder}", "trainer.max_steps=1000000"]
        refused = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=300)
        named = f"processes {going_on[0]}, {going_on[1]} on this machine"
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {folder} is being trained by another process ({named})")
        for pid in going_on:
            os.kill(pid, signal.SIGKILL)
        done = max(steps(folder))
        again = [*command, f"resume={folder}", f"trainer.max_steps={done + 20}"]  # at once: torchrun has yet to notice
        assert subprocess.run(again, env=environment, timeout=300).returncode == 0
    finally:
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    assert max(Counter(steps(folder)).values()) == 1
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
