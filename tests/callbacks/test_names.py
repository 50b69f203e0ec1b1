"""Which file has which name in a run that goes on from an older checkpoint: the future it gave up is not used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interruption import Crash, Interrupt
from safetensors.torch import load_file

from lit_tfm import config
from lit_tfm.callbacks.checkpoint_files import LAST, PREVIOUS, AtomicCheckpointIO, check, keep_as, newest, read, step_of
from lit_tfm.callbacks.names import settle
from lit_tfm.train import train

QUICK = ["data.block_size=32", "data.batch_size=4", "tokenizer.vocab_size=400", "data.val_limit=4", "budget=null"]
PACE = ["trainer.val_every=2", "++callbacks.checkpoints.every=3", "++callbacks.checkpoints.best=2"]
MLM = ["experiment=bert_small", *QUICK, *PACE]


def steps(folder: Path) -> dict[str, int | None]:
    return {path.name: step_of(path) for path in folder.glob("*.ckpt")}


def ranking(path: Path) -> list[dict[str, float]]:
    return read(path)["callbacks"]["Checkpoints"]["ranking"]


def none_is_better_than_step_two(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    assert [entry["step"] for entry in saved["callbacks"]["Checkpoints"]["ranking"]] == [2]
    saved["callbacks"]["Checkpoints"]["ranking"][0]["value"] = 0.0
    saved["callbacks"]["Record"]["best"]["val/loss"] = 0.0
    torch.save(saved, path)


def test_an_older_checkpoint_is_the_newest_once_the_run_goes_on_from_it(run, text_folder) -> None:
    """Killed before its first validation, too. Its ranking names a best (step 2) whose file was replaced since."""
    folder = run(*MLM, f"data.path={text_folder}", "trainer.max_steps=6").folder
    kept = folder / "checkpoints"
    none_is_better_than_step_two(kept / "step-3.ckpt")
    assert steps(kept) == {LAST: 6, PREVIOUS: 4, "best.ckpt": 6, "best-2.ckpt": 4, "step-3.ckpt": 3, "step-6.ckpt": 6}
    cfg = config.compose([f"resume={kept / 'step-3.ckpt'}", "trainer.max_steps=8"])
    with pytest.raises(Crash):
        train(cfg, quiet=True, callbacks=[Interrupt("batch@4", "crash")])
    assert steps(kept) == {LAST: 3, "step-3.ckpt": 3, "step-6.ckpt": 6}
    assert newest(kept) == (kept / LAST, [])
    done = train(config.compose([f"resume={folder}", "trainer.max_steps=8"]), quiet=True)
    found = ranking(kept / LAST)
    assert len({entry["step"] for entry in found} & {4, 6, 8}) == 2
    assert [steps(kept)["best.ckpt"], steps(kept)["best-2.ckpt"]] == [entry["step"] for entry in found]
    assert done.best["step"] == found[0]["step"]  # and not the figures of step 2, whose weights are gone
    assert done.best["val/loss"] == found[0]["value"]


def test_a_broken_newest_does_not_replace_the_one_gone_on_with(run, text_folder) -> None:
    folder = run(*MLM, f"data.path={text_folder}", "trainer.max_steps=4").folder
    kept = folder / "checkpoints"
    for name in (LAST, "best.ckpt", "step-3.ckpt"):
        (kept / name).unlink()
        (kept / name).write_bytes(b"nothing")
    with pytest.raises(Crash):
        train(
            config.compose([f"resume={folder}", "trainer.max_steps=6"]),
            quiet=True,
            callbacks=[Interrupt("batch@3", "crash")],
        )
    assert (step_of(kept / LAST), step_of(kept / PREVIOUS)) == (2, 2)
    assert check(kept / LAST) is None


# As in test_checkpoint_files.py: a child for every instant, which is killed before one of its file operations.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from test_names import BEST
import lit_tfm.callbacks.checkpoint_files as files
from lit_tfm.callbacks.names import settle

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
    for name in ("replace", "fsync", "open", "link", "utime", "unlink", "remove"):
        setattr(os, name, counted(getattr(os, name)))
    Path.unlink = counted(Path.unlink)
    files.save_file = counted(files.save_file)

fatal = 0
while True:
    fatal += 1
    folder = Path(sys.argv[1], str(fatal))
    shutil.copytree(sys.argv[3], folder)
    if not (child := os.fork()):
        watch(fatal)
        settle(folder, BEST, folder / sys.argv[2])
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""
BEST = [("best.ckpt", 2), ("best-2.ckpt", 1), ("best-3.ckpt", 3)]  # of step 4; the file of step 2 is nowhere any more


def checkpoint(step: int) -> dict:
    weights = {"a": torch.arange(300.0), "b": torch.full((4,), float(step))}
    return {"state_dict": weights, "global_step": step, "loops": {}, "lit_tfm": {"progress": {}}}


def old(folder: Path) -> None:
    """A run that came to step 6: its best are 5, 6 and 1."""
    io = AtomicCheckpointIO()
    io.weights = True
    for step, names in [(1, ["best-3.ckpt"]), (3, ["step-3.ckpt"]), (4, ["step-4.ckpt"]), (5, ["best.ckpt"]), (6, [])]:
        io.save_checkpoint(checkpoint(step), folder / LAST)
        for name in names:
            keep_as(folder / LAST, name)
    keep_as(folder / LAST, "best-2.ckpt")
    for step in (3, 4):
        (folder / f"step-{step}.safetensors").unlink()


@pytest.mark.parametrize("resumed", ["step-4.ckpt", pytest.param(PREVIOUS, marks=pytest.mark.slow)])
def test_killed_between_any_two_file_operations_the_one_gone_on_with_is_left(tmp_path, monkeypatch, resumed) -> None:
    """And the next start brings every name to where an undisturbed one does."""
    old(tmp_path / "old")
    step = 4 if resumed == "step-4.ckpt" else 5
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # here only: it costs seconds
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed"), resumed, str(tmp_path / "old")],
        env=environment,
        check=True,
        timeout=120,
    )
    folders = sorted((tmp_path / "killed").iterdir(), key=lambda folder: int(folder.name))
    assert len(folders) >= 20
    expected = {LAST: step, "best.ckpt": 1, "best-2.ckpt": 3, "step-3.ckpt": 3, "step-4.ckpt": 4}
    expected |= {PREVIOUS: 5} if resumed == PREVIOUS else {}
    went_on = []
    for folder in folders:
        found, broken = newest(folder)
        assert not broken
        went_on.append(step_of(found))
        again = folder / LAST if went_on[-1] == step else folder / resumed  # killed too early: typed again
        assert check(again) is None
        assert settle(folder, BEST, again) == [1, 3]
        assert expected.items() <= steps(folder).items()
        assert steps(folder).get(PREVIOUS) in ({5} if resumed == PREVIOUS else {None})
        for name in (LAST, "best.ckpt", "best-2.ckpt"):
            assert float(load_file((folder / name).with_suffix(".safetensors"))["b"][0]) == steps(folder)[name]
        assert not list(folder.glob(".*[!l]"))
        shutil.rmtree(folder)
    assert went_on == sorted(went_on, reverse=True)  # once it is the newest, it stays so
    assert set(went_on) == {6, step}
