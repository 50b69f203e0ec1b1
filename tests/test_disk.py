"""A disk that fails a write, at every kind of file a run writes: one line, status 2, and what stands there is whole."""

import builtins
import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file
from small_runs import NO_PICTURES, SMALL

from lit_tfm import config
from lit_tfm.callbacks import checkpoint_files
from lit_tfm.callbacks.checkpoint_files import check
from lit_tfm.errors import UserError
from lit_tfm.train import train

OPTIONS = ["experiment=bert_small", *SMALL, "trainer.max_steps=4", "trainer.val_every=2", *NO_PICTURES[:-1]]


class Disk:
    """Every write to a file whose name holds `name` fails with `number`, from the `since`-th opened one on."""

    def __init__(self, monkeypatch, name: str, number: int, since: int = 1) -> None:
        self.name, self.number, self.since, self.opened = name, number, since, 0
        really = builtins.open
        save, link, copy = checkpoint_files.save_file, os.link, shutil.copyfile

        def opens(path, mode="r", *args, **kwargs):
            file = really(path, mode, *args, **kwargs)
            return self.broken(file) if set(mode) & set("wax") and self.hits(path) else file

        def saves(tensors, path, *args, **kwargs):
            if self.hits(path):
                Path(path).write_bytes(b"half")
                raise SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")
            save(tensors, path, *args, **kwargs)

        def links(source, target, *args, **kwargs):
            self.may(target)
            link(source, target, *args, **kwargs)

        def copies(source, target, *args, **kwargs):
            self.may(target)
            return copy(source, target, *args, **kwargs)

        for place in (builtins, io):
            monkeypatch.setattr(place, "open", opens)
        monkeypatch.setattr(checkpoint_files, "save_file", saves)
        monkeypatch.setattr(os, "link", links)
        monkeypatch.setattr(shutil, "copyfile", copies)

    def hits(self, path) -> bool:
        if isinstance(path, int) or self.name not in Path(os.fsdecode(path)).name:
            return False
        self.opened += 1
        return self.opened >= self.since

    def may(self, path) -> None:
        if self.name in Path(path).name:
            raise self.error()

    def error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number))

    def broken(self, file):
        """Half of the first write gets through."""
        write = file.write

        def fails(data):
            write(data[: len(data) // 2])
            file.flush()
            raise self.error()

        class Broken:
            def __init__(self, inner) -> None:
                self.inner = inner
                self.write = fails

            def __getattr__(self, name):
                return getattr(self.inner, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.inner.close()

            def writelines(self, lines) -> None:
                fails("".join(lines))

        return Broken(file)


def assert_whole(folder: Path) -> None:
    """Every file that has its final name can be read to its end, and nothing else lies about."""
    for path in folder.rglob("*"):
        assert not path.name.startswith("."), path
        if path.suffix == ".ckpt":
            assert check(path) is None, path
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "metrics.csv":
            assert {len(row) for row in csv.reader(path.read_text().splitlines())} <= {5}


@pytest.mark.parametrize(
    ("name", "number", "since"),
    [
        ("config.yaml", errno.ENOSPC, 1),
        ("command.txt", errno.EROFS, 1),
        ("environment.json", errno.EIO, 1),
        ("data.json", errno.ENOSPC, 1),
        ("tokenizer.json", errno.EDQUOT, 1),
        ("summary.json", errno.ENOSPC, 1),
        ("summary.json", errno.EIO, 3),
        ("metrics.csv", errno.ENOSPC, 1),
        ("metrics.csv", errno.EIO, 4),
        ("last.ckpt", errno.ENOSPC, 1),
        ("last.ckpt", errno.EIO, 2),
        ("last.safetensors", errno.ENOSPC, 3),
        ("best.ckpt", errno.ENOSPC, 1),
        ("events.out", errno.ENOSPC, 1),
        ("vectors.tsv", errno.EROFS, 1),
    ],
)
def test_a_write_that_fails(monkeypatch, tmp_path, session_cache, text_folder, capsys, name, number, since) -> None:
    folder = tmp_path / "run"
    given = [f"cache_dir={session_cache}", f"data.path={text_folder}", f"output_dir={folder}"]
    cfg = config.compose(
        [*OPTIONS, *given, *([] if name in ("events.out", "vectors.tsv") else ["logger.tensorboard=null"])]
    )
    with monkeypatch.context() as patch:
        disk = Disk(patch, name, number, since)
        with pytest.raises(UserError) as caught:
            train(cfg, quiet=True)
    assert disk.opened >= since or name == "best.ckpt"
    message = str(caught.value)
    assert f"can't be written ({os.strerror(number)})" in message
    assert caught.value.status == 2
    assert "\n" not in message
    assert capsys.readouterr().err == ""
    assert_whole(folder)
    if (name, since) == ("last.ckpt", 2):  # the one before
        assert (folder / "checkpoints" / "last.ckpt").exists()
    if name not in ("config.yaml", "summary.json"):
        assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(kilobytes)`: a folder on a file system of that size; where one may not be mounted, skipped."""
    mounted: list[Path] = []

    def make(kilobytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "lit_tfm_test", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("file systems may not be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 64, 150, 400, 600, 900, 1300])
def test_a_disk_that_is_really_full(small_disk, session_cache, text_folder, kilobytes) -> None:
    """Wherever it happens to be full: in the yaml, a checkpoint, TensorBoard's file ... ."""
    folder = small_disk(kilobytes) / "run"
    given = [f"cache_dir={session_cache}", f"data.path={text_folder}", f"output_dir={folder}", "trainer.max_steps=40"]
    given += ["model.tie_embeddings=false"]  # files of the size that the disks are for
    program = [sys.executable, "-m", "lit_tfm.train", *OPTIONS, *given, "callbacks=[default]"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 2, done.stderr[-3000:]
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "No space left on device" in done.stderr
    if folder.exists():
        assert_whole(folder)
