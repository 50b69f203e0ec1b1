"""A trial's folder: held by one attempt at a time, gone on with from its checkpoint, cleared where there is none."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_tfm.holding import birth, machine, share
from lit_tfm.search import trial_folder

HOLD = """
import sys, time
from pathlib import Path
from lit_tfm.holding import share

held = share(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen:
    """A process of a trial whose worker is gone."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_who_takes_a_folder_over_waits_until_nobody_else_writes_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trial_folder, "LINGERING", 0.1)
    monkeypatch.setattr(trial_folder, "PATIENCE", 0.5)
    process = holder(tmp_path)
    assert trial_folder.take(tmp_path) is None  # nobody knows whose it is: it is left alone
    trial_folder.write_record(tmp_path, pid=process.pid, birth=birth(process.pid) + 1, machine=machine())
    assert trial_folder.take(tmp_path) is None  # another process had that number
    assert process.poll() is None
    trial_folder.write_record(tmp_path, birth=birth(process.pid))
    monkeypatch.setattr(trial_folder, "PATIENCE", 10)
    lock = trial_folder.take(tmp_path)
    assert lock is not None
    assert process.wait(timeout=10) == -signal.SIGKILL
    lock.close()


def test_a_worker_and_its_trials_share_and_others_do_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trial_folder, "PATIENCE", 0.2)
    mine = trial_folder.take(tmp_path)
    trials = share(tmp_path)
    assert trial_folder.take(tmp_path) is None
    mine.close()
    assert trial_folder.take(tmp_path) is None  # its process lives on
    trials.close()
    began = time.monotonic()
    assert trial_folder.take(tmp_path) is not None
    assert time.monotonic() - began < 0.15


def left_behind(folder: Path, checkpoint: bool) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    if checkpoint:
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    (folder / "config.yaml").write_text("trainer: {accumulate: 1}\n")
    (folder / "metrics.csv").write_text("step,seconds,tokens,name,value\n")
    for name in ("trial.json", "log.txt", "error.txt", ".lock"):
        (folder / name).write_text("{}")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_checkpoint_is_gone_on_with(tmp_path: Path, accumulate: int) -> None:
    """Also one of other micro-batches, which `auto_batch` writes into config.yaml: it fits."""
    left_behind(tmp_path, checkpoint=True)
    (tmp_path / "config.yaml").write_text(f"trainer: {{accumulate: {accumulate}}}\n")
    assert trial_folder.prepare(tmp_path) == tmp_path
    assert (tmp_path / "metrics.csv").exists()


def test_without_one_it_starts_again_and_the_sweeps_own_files_stay(tmp_path: Path) -> None:
    left_behind(tmp_path, checkpoint=False)
    assert trial_folder.prepare(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {"trial.json", "log.txt", "error.txt", ".lock"}


def test_the_tail_of_a_log_begins_where_the_attempt_did(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("first attempt\n")
    began = log.stat().st_size
    log.write_text("first attempt\nsecond attempt\n" + "x" * 100)
    assert trial_folder.tail(log, began).startswith("second attempt")
    assert trial_folder.tail(log, began, size=10) == "x" * 10
    assert trial_folder.tail(tmp_path / "none") == ""


def test_records_are_replaced_key_by_key(tmp_path: Path) -> None:
    trial_folder.write_record(tmp_path, number=3, state="running")
    trial_folder.write_record(tmp_path, state="complete")
    assert json.loads((tmp_path / "trial.json").read_text()) == {"number": 3, "state": "complete"}
