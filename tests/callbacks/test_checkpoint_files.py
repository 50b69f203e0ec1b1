"""Checkpoint files: whole or absent at every instant, never trusted unchecked, never the only one."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_tfm import config
from lit_tfm.callbacks.checkpoint_files import AtomicCheckpointIO, check, keep_as, newest, save_weights
from lit_tfm.errors import UserError
from lit_tfm.train import train

QUICK = ["data.block_size=32", "data.batch_size=4", "tokenizer.vocab_size=400", "data.val_limit=4", "budget=null"]
MLM = ["experiment=bert_small", *QUICK, "trainer.max_steps=6", "trainer.val_every=2"]


def checkpoint(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    weights = {"a": torch.randn(300, generator=generator), "b": torch.full((4,), float(step))}
    return {"state_dict": weights, "global_step": step, "loops": {}, "lit_tfm": {"progress": {}}}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two saves: last.ckpt of step 2, previous.ckpt of step 1."""
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(step), tmp_path / "last.ckpt")
    return tmp_path


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def test_the_newest_is_not_the_only_one(folder) -> None:
    assert step_of(folder / "last.ckpt") == 2
    assert step_of(folder / "previous.ckpt") == 1
    assert newest(folder) == (folder / "last.ckpt", [])


def later(path: Path, step: int, seconds: float) -> None:
    """Saved so long after last.ckpt."""
    AtomicCheckpointIO().save_checkpoint(checkpoint(step), path)
    time = path.with_name("last.ckpt").stat().st_mtime + seconds
    os.utime(path, (time, time))


def test_of_a_later_step_is_newer_than_the_last_validation(folder) -> None:
    later(folder / "step-3.ckpt", 3, 1)
    later(folder / "step-20.ckpt", 20, 2)
    later(folder / "step-100.ckpt", 100, -5)  # of a future that was given up: last.ckpt was put there after it
    later(folder / "best.ckpt", 1, 9)  # the folder was copied
    assert newest(folder) == (folder / "step-20.ckpt", [])
    (folder / "step-20.ckpt").write_bytes(b"half")
    found, broken = newest(folder)
    assert found == folder / "step-3.ckpt"
    assert len(broken) == 1
    (folder / "step-3.ckpt").unlink()
    assert newest(folder)[0] == folder / "last.ckpt"


def test_of_a_later_step_is_newer_than_the_one_before_a_broken_one(tmp_path) -> None:
    io = AtomicCheckpointIO()
    for step, name in [(3, "last"), (6, "last"), (8, "step-8"), (9, "last")]:
        io.save_checkpoint(checkpoint(step), tmp_path / f"{name}.ckpt")
        for path in tmp_path.glob("*.ckpt"):  # as if each had taken its time
            os.utime(path, (1e9 + step_of(path),) * 2)
    data = bytearray((tmp_path / "last.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "last.ckpt").write_bytes(data)
    found, broken = newest(tmp_path)
    assert (found.name, len(broken)) == ("step-8.ckpt", 1)
    os.utime(tmp_path / "step-8.ckpt", (1e9, 1e9))  # of a future that was given up
    assert newest(tmp_path)[0].name == "previous.ckpt"


def test_no_flipped_bit_goes_unnoticed_that_changes_a_value(folder) -> None:
    draw, whole = random.Random(0), (folder / "last.ckpt").read_bytes()
    good, spoilt, noticed = torch.load(folder / "last.ckpt", weights_only=True), folder / "spoilt.ckpt", 0
    for _ in range(600):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        spoilt.write_bytes(data)
        if check(spoilt):
            noticed += 1
            continue
        read = torch.load(spoilt, weights_only=True)
        assert read["global_step"] == good["global_step"]
        assert all(torch.equal(read["state_dict"][k], v) for k, v in good["state_dict"].items())
    assert noticed > 300  # the rest fell on padding


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_one_is_noticed_and_the_one_before_is_used(folder, keep) -> None:
    last = folder / "last.ckpt"
    data = last.read_bytes()
    last.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    found, broken = newest(folder)
    assert found == folder / "previous.ckpt"
    assert len(broken) == 1
    assert str(last) in broken[0]


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_crafted_one_executes_nothing(folder, tmp_path) -> None:
    proof = tmp_path / "executed"
    torch.save({**checkpoint(3), "extra": Payload(proof)}, folder / "last.ckpt")
    found, broken = newest(folder)
    assert found == folder / "previous.ckpt"
    assert "not executed" in broken[0]
    (folder / "last.ckpt").write_bytes(pickle.dumps(Payload(proof)))
    assert newest(folder)[0] == folder / "previous.ckpt"
    assert not proof.exists()
    pickle.loads((folder / "last.ckpt").read_bytes())  # the payload is a real one
    assert proof.exists()


@pytest.mark.parametrize("links", [True, False])
def test_one_that_is_kept_outlives_the_newest(tmp_path, monkeypatch, links) -> None:
    if not links:

        def refuse(*args) -> None:
            raise OSError("no links on this file system")

        monkeypatch.setattr(os, "link", refuse)
    io = AtomicCheckpointIO()
    io.weights = True
    for step in (1, 2, 3):
        io.save_checkpoint(checkpoint(step), tmp_path / "last.ckpt")
        if step < 3:
            keep_as(tmp_path / "last.ckpt", "best.ckpt")
    assert (step_of(tmp_path / "best.ckpt"), step_of(tmp_path / "last.ckpt")) == (2, 3)
    kept, newest_weights = (load_file(tmp_path / f"{name}.safetensors") for name in ("best", "last"))
    assert (float(kept["b"][0]), float(newest_weights["b"][0])) == (2.0, 3.0)


def test_a_file_that_is_another_thing_says_what_it_lacks(folder) -> None:
    torch.save({"state_dict": {}}, folder / "last.ckpt")
    assert check(folder / "last.ckpt") == "it lacks global_step, loops, lit_tfm"


def test_where_none_is_whole_all_are_named(folder) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"last\.ckpt is broken.*previous\.ckpt is broken"):
        newest(folder)


# A process of its own that forks for every instant: a child counts file operations and is killed at one of them.
KILLED = """
import os, signal, sys
from pathlib import Path
from test_checkpoint_files import AtomicCheckpointIO, checkpoint
import lit_tfm.callbacks.checkpoint_files as files

def watch(fatal):
    count = 0
    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return wrapper
    os.replace, os.fsync, os.open = counted(os.replace), counted(os.fsync), counted(os.open)
    os.link = counted(os.link)
    files.save_file, write = counted(files.save_file), files.torch.save
    def torn(value, file):
        write(value, file)
        file.truncate(file.tell() // 2)
        counted(lambda: None)()  # killed with half a file on the disk
        file.seek(0), file.truncate(0), write(value, file)
    files.torch.save = torn

fatal = 0
while True:
    fatal += 1
    folder = Path(sys.argv[1], str(fatal))
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(step), folder / "last.ckpt")
    if not (child := os.fork()):
        watch(fatal)
        files_io = AtomicCheckpointIO()
        files_io.weights = True
        files_io.save_checkpoint(checkpoint(3), folder / "last.ckpt")
        files.keep_as(folder / "last.ckpt", "best.ckpt")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_killed_between_any_two_file_operations_a_whole_one_is_left(tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=True, timeout=120)
    folders = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(folders) >= 8
    found = [newest(folder) for folder in folders]
    assert not any(broken for _, broken in found)
    steps = [step_of(path) for path, _ in found]
    assert steps == sorted(steps)  # the old one up to some instant, then the new one
    assert set(steps) == {2, 3}


def test_what_gets_its_name_is_on_the_disk(tmp_path, monkeypatch) -> None:
    """Or a power cut leaves a name with nothing behind it. That of metrics.csv: callbacks/test_metrics_csv.py."""
    synced, named, sync, replace = set(), [], os.fsync, os.replace

    def fsync(descriptor) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def rename(source, target) -> None:
        assert Path(source).stat().st_ino in synced, target
        named.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    io = AtomicCheckpointIO()
    io.weights = True
    io.save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    assert named == ["last.ckpt", "last.safetensors"]


def test_a_run_goes_on_from_the_one_before_and_ends_the_same(run, text_folder, tmp_path, capsys) -> None:
    data = f"data.path={text_folder}"
    whole = run(*MLM, data, folder="whole").folder
    cut = run(*MLM, data, "trainer.max_steps=4", folder="cut").folder
    last = cut / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    train(config.compose([f"resume={cut}", "trainer.max_steps=6"]))
    said = " ".join(capsys.readouterr().out.split())
    assert "is broken" in said
    assert "going on from" in said
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (whole, cut))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_broken_file_that_was_named_is_refused(folder) -> None:
    (folder / "last.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="broken"):
        train(config.compose(["experiment=bert_small", f"resume={folder / 'last.ckpt'}"]))


def test_equal_weights_are_equal_files(tmp_path) -> None:
    """The library writes the words of a header in any order: of 16 files some would differ."""
    state = {"größe": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    for number in range(16):
        save_weights(tmp_path / f"{number}.ckpt", state, step=3)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(16)}) == 1
    read = load_file(tmp_path / "0.safetensors")
    assert all(torch.equal(read[name], value) for name, value in state.items())
