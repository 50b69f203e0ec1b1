"""Checkpoints in shards: a folder is as whole, as checked and as harmless as a file. One rank is enough for that."""

import errno
import json
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_tfm.callbacks import replacing, sharded_files
from lit_tfm.callbacks.checkpoint_files import (
    AtomicCheckpointIO,
    check,
    head,
    keep_as,
    newest,
    read,
    save_weights,
    step_of,
    step_of_weights,
    take_place,
)
from lit_tfm.callbacks.names import settle


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.embedding.weight


def state(step: int, mesh) -> dict:
    whole = torch.arange(21.0).reshape(7, 3) + step
    weight, training = distribute_tensor(whole, mesh), distribute_tensor(whole + 1, mesh)
    moments = {"embedding.weight": {"step": torch.tensor(float(step)), "exp_avg": distribute_tensor(whole / 2, mesh)}}
    groups = [{"params": ["embedding.weight"], "lr": 0.1, "betas": (0.9, 0.95)}]
    return {
        "state_dict": {"embedding.weight": weight, "head.weight": weight},
        "training_weights": {"embedding.weight": training, "head.weight": training},
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "global_step": step,
        "loops": {},
        "lit_tfm": {"progress": {}},
    }


@pytest.fixture
def save(mesh, tmp_path):
    def write(step: int, name: str = "last.ckpt") -> Path:
        sharded_files.write(tmp_path / f".{name}.partial", state(step, mesh), Tied())
        take_place(tmp_path / f".{name}.partial", tmp_path / name)
        return tmp_path / name

    return write


def test_what_is_read_is_what_was_written(save, mesh) -> None:
    path, expected = save(3), state(3, mesh)
    assert check(path) is None
    found = read(path)
    weight = expected["state_dict"]["embedding.weight"].full_tensor()
    assert torch.equal(found["state_dict"]["head.weight"], weight)
    assert found["state_dict"]["head.weight"] is found["state_dict"]["embedding.weight"]  # tied: stored once
    optimizer = found["optimizer_states"][0]
    assert optimizer["param_groups"][0]["params"] == [0]
    assert torch.equal(optimizer["state"][0]["exp_avg"], weight / 2)
    assert float(optimizer["state"][0]["step"]) == 3
    assert not any(isinstance(value, DTensor) for value in found["training_weights"].values())
    assert head(path)[1] == {"embedding.weight": torch.Size([7, 3]), "head.weight": torch.Size([7, 3])}


def spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("how", ["missing", "flipped", "truncated"])
@pytest.mark.parametrize("name", ["rest.pt", "shards.json", "shard-00001-model-00001-of-00001.safetensors"])
def test_a_broken_one_is_named_and_the_one_before_is_used(save, tmp_path, how, name) -> None:
    save(1), save(2)
    spoil(tmp_path / "last.ckpt" / name, how)
    found, broken = newest(tmp_path)
    assert found == tmp_path / "previous.ckpt"
    assert step_of(found) == 1
    assert len(broken) == 1
    assert name in broken[0] or "last.ckpt" in broken[0]


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_folder_of_a_stranger_executes_nothing(save, tmp_path) -> None:
    proof, path = tmp_path / "executed", save(2)
    (path / ".metadata").write_bytes(pickle.dumps(Payload(proof)))  # where torch.distributed.checkpoint has its pickle
    assert "does not belong to it" in check(path)
    read(path)
    (path / ".metadata").unlink()
    torch.save({**sharded_files.rest(path), "extra": Payload(proof)}, path / "rest.pt")
    table = json.loads((path / "shards.json").read_text())
    table["files"]["rest.pt"] = [(path / "rest.pt").stat().st_size, sharded_files.crc(path / "rest.pt")]
    (path / "shards.json").write_text(json.dumps(table))
    assert "not executed" in check(path)
    with pytest.raises(pickle.UnpicklingError):
        read(path)
    assert not proof.exists()
    torch.load(path / "rest.pt", weights_only=False)  # the payload is a real one
    assert proof.exists()


def test_a_table_that_names_other_folders_reads_none(save, tmp_path) -> None:
    path = save(2)
    (tmp_path / "secret").write_text("mine")
    (path / "shards.json").write_text(json.dumps({"files": {"../secret": [4, 0]}}))
    assert check(path) == "../secret is missing"


@pytest.mark.parametrize("room", [0, 1000])
def test_a_full_disk_is_told_as_such(save, tmp_path, room) -> None:
    """As a limit on the size of files, of which rest.pt is the first."""
    save(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert step_of(newest(tmp_path)[0]) == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full", "rest.pt"), ValueError("a defect"), None])
def test_what_fails_on_another_rank_is_raised_here_too(mesh, monkeypatch, error) -> None:
    """No rank waits at the next exchange for one that has left. (The two ranks of this one take turns.)"""
    said: list = []

    def act(fails):
        if fails is not None:
            raise fails
        return 1

    def gather(told, mine) -> None:
        said.append(mine)
        told[:] = [*said, mine][:2]

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    if error is None:
        assert [sharded_files.together(lambda: act(None)) for _ in range(2)] == [[1, 1], [1, 1]]
        return
    with pytest.raises(type(error)) as own:
        sharded_files.together(lambda: act(error))
    with pytest.raises((OSError, RuntimeError)) as other:
        sharded_files.together(lambda: act(None))
    if isinstance(error, OSError):
        assert own.value.args == other.value.args
        assert own.value.filename == other.value.filename == "rest.pt"
    else:
        assert str(other.value) == "rank 0 could not write its part of the checkpoint: ValueError: a defect"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kinds", ["folder folder folder", "file folder file", "folder file folder"])
def test_killed_between_any_two_renames_a_whole_one_is_left(save, tmp_path, monkeypatch, mesh, kinds) -> None:
    """Also where the kind changes from one save to the next, as after a resume with another setting."""
    steps, count, fatal = [], 0, 0
    real_replace, real_remove = os.replace, replacing.shutil.rmtree

    def make(step: int, kind: str) -> None:
        if kind == "folder":
            save(step)
            return
        plain = {**state(step, mesh), "state_dict": {}, "training_weights": {}, "optimizer_states": []}
        AtomicCheckpointIO().save_checkpoint(plain, tmp_path / "last.ckpt")

    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == fatal:
                raise Killed
            return call(*args, **kwargs)

        return wrapper

    while True:
        fatal += 1
        for entry in list(tmp_path.iterdir()):
            replacing.remove(entry)
        one, two, three = kinds.split()
        make(1, one), make(2, two)
        count = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(real_replace))
            patch.setattr(replacing.shutil, "rmtree", counted(real_remove))
            try:
                make(3, three)
            except Killed:
                pass
            else:
                break
        found, broken = newest(tmp_path)
        assert not broken
        steps.append(step_of(found))
        make(4, three)  # what was left over is in nobody's way
        assert step_of(newest(tmp_path)[0]) == 4
    assert set(steps) <= {2, 3}
    assert steps == sorted(steps)
    assert len(steps) >= 2


# ---- the names of the best -------------------------------------------------------------------------------------


def keep(tmp_path: Path, mesh, step: int, *names: str) -> None:
    io = AtomicCheckpointIO()
    io.weights = True
    whole = {"state_dict": {"a": torch.full((2,), float(step))}}
    io.save_checkpoint(
        {**state(step, mesh), "training_weights": {}, "optimizer_states": [], **whole}, tmp_path / "last.ckpt"
    )
    for name in names:
        keep_as(tmp_path / "last.ckpt", name)


def test_a_kill_between_last_and_best_is_made_good(tmp_path, mesh) -> None:
    """The ranking of the newest checkpoint says that it is the best; its file has not got that name."""
    keep(tmp_path, mesh, 2, "best.ckpt")
    keep(tmp_path, mesh, 4)
    settle(tmp_path, [("best.ckpt", 4), ("best-2.ckpt", 2)], tmp_path / "last.ckpt")
    for name, step in (("best", 4), ("best-2", 2)):
        assert step_of(tmp_path / f"{name}.ckpt") == step
        assert step_of_weights(tmp_path / f"{name}.safetensors") == step
        assert float(load_file(tmp_path / f"{name}.safetensors")["a"][0]) == step
    assert not list(tmp_path.glob(".*"))


def test_weights_that_were_not_written_before_a_kill_are(tmp_path, mesh) -> None:
    keep(tmp_path, mesh, 2, "best.ckpt")
    save_weights(tmp_path / "last.ckpt", {"a": torch.zeros(2)}, 1)
    (tmp_path / "best.safetensors").unlink()
    save_file({"a": torch.zeros(2)}, tmp_path / "best.safetensors")  # of an older version, which told no step
    settle(tmp_path, [("best.ckpt", 2)], tmp_path / "last.ckpt")
    assert [float(load_file(tmp_path / f"{n}.safetensors")["a"][0]) for n in ("last", "best")] == [2.0, 2.0]


def test_a_best_in_shards_that_stepped_aside_comes_back(save, tmp_path) -> None:
    save(2), keep_weights(tmp_path, 2)
    keep_as(tmp_path / "last.ckpt", "best.ckpt")
    os.replace(tmp_path / "best.ckpt", tmp_path / ".best.ckpt.old")
    save(3), keep_weights(tmp_path, 3)
    settle(tmp_path, [("best.ckpt", 2)], tmp_path / "last.ckpt")
    assert check(tmp_path / "best.ckpt") is None
    assert step_of(tmp_path / "best.ckpt") == 2
    assert not (tmp_path / ".best.ckpt.old").exists()


def keep_weights(tmp_path: Path, step: int) -> None:
    path = tmp_path / "last.ckpt"
    save_weights(path, sharded_files.read(path, only="state_dict")["state_dict"], step)
