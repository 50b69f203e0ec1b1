"""What is written stays in the folder it belongs to, and is readable by whom the umask says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_tfm import config, evaluate
from lit_tfm.callbacks.checkpoint_files import save_weights
from lit_tfm.callbacks.replacing import open_new
from lit_tfm.data.sources.files import Files
from lit_tfm.errors import UserError
from lit_tfm.runs import RunFolder
from lit_tfm.search.looking import look
from lit_tfm.search.settings import load
from lit_tfm.search.storage import connect
from lit_tfm.search.study import Signature
from lit_tfm.search.supervisor import check_folder
from lit_tfm.train import train

LINKS = ["tokenizer.json", "metrics.csv", "summary.json", "checkpoints/.last.ckpt.partial", "checkpoints/last.ckpt"]


@pytest.fixture
def mine(tmp_path) -> Path:
    """A file of the user's, outside of every run."""
    file = tmp_path / "mine.txt"
    file.write_text("precious")
    return file


@pytest.mark.parametrize("name", [*LINKS, "projector", "evaluation"])
def test_a_run_folder_leads_nowhere_else(name: str, mine, learnt, session_cache) -> None:
    """Going on with a run, or measuring it, writes into its folder: through a link, into the user's own files."""
    run = learnt("causal")
    link, target = run / name, mine
    if link.suffix == ".ckpt" and link.exists():
        (mine.parent / "elsewhere.ckpt").write_bytes(link.read_bytes())
        target = mine.parent / "elsewhere.ckpt"
    elif link.exists() and link.is_file():
        target.write_bytes(link.read_bytes())
    elif not link.suffix:
        target = mine.parent
    before = target.read_bytes() if target.is_file() else sorted(target.iterdir())
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    with pytest.raises(UserError, match="is a link out of the folder"):
        train(config.compose([f"resume={run}", "trainer.max_steps=14"]), quiet=True)
    with pytest.raises(UserError, match="is a link out of the folder"):
        evaluate.evaluate([str(run), "--resamples", "0"])
    assert (target.read_bytes() if target.is_file() else sorted(target.iterdir())) == before


def test_links_within_a_run_are_no_matter(tmp_path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "a.ckpt").touch()
    (tmp_path / "run" / "newest").symlink_to("checkpoints/a.ckpt")
    (tmp_path / "named").symlink_to("run")
    RunFolder(tmp_path / "run").keep_inside()
    RunFolder(tmp_path / "named").keep_inside()  # the folder itself may be one: the user named it


def test_a_temporary_name_is_not_followed(mine) -> None:
    link = mine.with_name(".x.partial")
    link.symlink_to(mine)
    with open_new(link) as file:
        file.write(b"checkpoint")
    assert (mine.read_text(), link.is_symlink()) == ("precious", False)


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/tmp/out", "~/out", ".", "x/.hidden", "a\x1b[31m", "[bold]a", ""]
)
def test_a_run_is_named_inside_outputs(name: str) -> None:
    cfg = config.compose(["name=x"])
    cfg.name = name
    with pytest.raises(UserError, match="a folder in outputs is called so"):
        config.check_values(cfg)


def test_ordinary_names(tmp_path) -> None:
    for name in ("bert_small", "sst2/bert small (2)", "größe-1.5", "a+b=c@d,e"):
        cfg = config.compose(["name=x"])
        cfg.name = name
        config.check_values(cfg)


# ---- data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_data_folder_leads_nowhere_else(kind: str, mine, tmp_path) -> None:
    """Packed by somebody else, a link named train.txt would make a private file training text."""
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "valid.txt").write_text("text")
    link = data / "train.txt" if kind == "file" else data / "sub" / "train.txt"
    link.symlink_to(mine)
    with pytest.raises(UserError, match="is a link out of the folder"):
        Files(str(data))
    assert list(Files(str(link)).documents("train")) == ["precious"]  # named by the user
    link.unlink()
    link.symlink_to(data / "valid.txt")
    assert "train" in Files(str(data)).splits()


def test_the_hubs_cache_is_a_folder_of_links(tmp_path) -> None:
    blobs, snapshot = tmp_path / "datasets--a--b" / "blobs", tmp_path / "datasets--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "77").write_text("text")
    (snapshot / "train.txt").symlink_to("../../blobs/77")
    assert list(Files(str(snapshot)).documents("train")) == ["text"]


# ---- sweeps ----------------------------------------------------------------------------------------------------


def test_a_sweep_folder_leads_nowhere_else(tmp_path, mine) -> None:
    sweep = tmp_path / "sweep"
    (sweep / "trials").mkdir(parents=True)
    (sweep / "sweep.yaml").touch()
    check_folder(sweep)
    (sweep / "trials" / "0000").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link out of the folder"):
        check_folder(sweep)


def test_a_trial_is_gone_on_with_in_a_folder_of_its_sweep_only(tmp_path) -> None:
    """What a study says of the folder is believed for another worker's folder of the same sweep: before a trial starts
    anew, what no checkpoint is left of is removed from it."""
    names = {"ours": "tried", "another": "tried", "documents": None, "other": "else"}
    for folder, name in names.items():
        (tmp_path / folder / "trials" / "0003").mkdir(parents=True)
        if name:
            (tmp_path / folder / "sweep.yaml").write_text(f"name: {name}\n")
    (tmp_path / "linked" / "trials").mkdir(parents=True)
    (tmp_path / "linked" / "sweep.yaml").write_text("name: tried\n")
    (tmp_path / "linked" / "trials" / "0003").symlink_to(tmp_path / "documents")
    sign = Signature("me", "here", 1, 1.0, tmp_path / "ours")

    def goes_to(folder: Path) -> str:
        before = sign.holder(3)
        return sign.holder(3, type(before)("them", "here", 1, 1.0, str(folder))).folder

    own = str(tmp_path / "ours" / "trials" / "0003")
    assert goes_to(tmp_path / "another" / "trials" / "0003") == str(tmp_path / "another" / "trials" / "0003")
    for wrong in ("documents", "other", "linked"):
        assert goes_to(tmp_path / wrong / "trials" / "0003") == own
    for wrong in (tmp_path, tmp_path / "another" / "trials" / "0004", tmp_path / "another"):
        assert goes_to(wrong) == own


@pytest.mark.parametrize(
    "text",
    [
        "precious",
        '{"a":1}',
        '{\n "a": 1\n}',
        '{"op_code": 1}\n{"op_code": 2}',
        '{"op_code":0,"worker_id":"me"}',
        "{",
    ],
)
def test_no_file_is_mended_that_is_no_journal(text: str, mine, tmp_path) -> None:
    """Half a line at a journal's end is cut off; what is named as a storage by mistake stays as it is."""
    mine.write_text(text)
    for _ in range(2):  # the lock is given back
        with pytest.raises(UserError, match="the study can't be kept there"):
            connect(str(mine), tmp_path)
    assert mine.read_text() == text


ELSEWHERE = [
    "postgresql://me@db.example/x",
    "postgresql:///x?host=db.example",
    "mysql://u:p@db.example/x",
    "postgresql://localhost#@db.example/x",  # for a browser, localhost
    "postgresql:///x?host=/tmp,db.example",
    "postgresql:///x?conninfo=host%3Ddb.example",
    "postgresql:///x?service=theirs",
]
OUTSIDE = ["{mine}", "../mine.journal", "{sweep}/../mine.txt", "sqlite:///{mine}", "sqlite:///mine.db", "~/mine"]
OUTSIDE += ["sqlite:///file:{mine}?uri=true", "sqlite:///{sweep}/%2e%2e/mine.txt", "duckdb:///{mine}"]


@pytest.mark.parametrize("storage", [*ELSEWHERE, *OUTSIDE])
def test_a_sweep_of_a_stranger_tells_no_other_machine_and_makes_no_file_elsewhere(
    storage: str, mine, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    storage = storage.format(mine=mine, sweep=sweep)
    text = f"experiment: bert_small\nspace: {{optimizer.lr: {{low: 1e-4, high: 1e-2}}}}\noutput_dir: {sweep}\n"
    (tmp_path / "s.yaml").write_text(f"{text}storage: '{storage}'\n")
    (sweep / "sweep.yaml").write_text(f"name: s\nstorage: '{storage}'\n")
    before = sorted(tmp_path.rglob("*"))
    for doing in (lambda: load([f"sweep={tmp_path / 's.yaml'}"]), lambda: look([f"sweep={sweep}"])):
        with pytest.raises(UserError, match="type storage= yourself") as caught:
            doing()
        assert ":p@" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (sorted(tmp_path.rglob("*")), mine.read_text()) == (before, "precious")
    assert load([f"sweep={tmp_path / 's.yaml'}", f"storage='{storage}'"]).storage == storage


@pytest.mark.parametrize("storage", ["{sweep}/mine.journal", "sqlite:///{sweep}/a.db", "postgresql://me@localhost/x"])
def test_a_sweeps_yaml_may_keep_its_study_at_home(storage: str, tmp_path) -> None:
    storage = storage.format(sweep=tmp_path / "sweep")
    text = f"experiment: bert_small\nspace: {{optimizer.lr: {{low: 1e-4, high: 1e-2}}}}\nstorage: {storage}\n"
    (tmp_path / "s.yaml").write_text(text)
    assert load([f"sweep={tmp_path / 's.yaml'}", f"output_dir={tmp_path / 'sweep'}"]).storage == storage


# ---- the umask -------------------------------------------------------------------------------------------------

RUN_AND_SWEEP = """
import os, sys
os.umask(int(sys.argv[1], 8))
from lit_tfm import config
from lit_tfm.search.settings import load
from lit_tfm.search.supervisor import run_sweep
from lit_tfm.train import train

words = ["model=bert_tiny", "model.d_model=16", "model.n_layers=1", "model.n_heads=1", "data=text", "cache_dir=cache"]
words += ["data.path=" + sys.argv[2], "data.block_size=16", "data.val_limit=4", "trainer.max_steps=2", "budget=null"]
words += ["tokenizer.vocab_size=300", "trainer.accelerator=cpu", "trainer.precision=32"]
if __name__ == "__main__":
    train(config.compose([*words, "output_dir=run"]), quiet=True)
    train(config.compose(["resume=run", "trainer.max_steps=3"]), quiet=True)
    sweep = ["sweep=" + sys.argv[3], "n_trials=1", "output_dir=sweep", "storage=study.journal"]
    run_sweep(load([*sweep, *words]), quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("umask", ["022", "002", "077"])
def test_files_are_made_with_the_umask(umask: str, text_folder, tmp_path) -> None:
    """A temporary file of Python's, or of a library, would be its owner's alone, also after it is renamed."""
    (tmp_path / "program.py").write_text(RUN_AND_SWEEP)
    (tmp_path / "s.yaml").write_text("experiment: bert_small\nspace: {optimizer.lr: {low: 1e-3, high: 1e-2}}\n")
    command = [sys.executable, "program.py", umask, str(text_folder), str(tmp_path / "s.yaml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    wrong, files = [], 0
    for top in ("run", "sweep", "cache", "study.journal"):
        for path in [tmp_path / top, *(tmp_path / top).rglob("*")]:
            wanted = (0o777 if path.is_dir() else 0o666) & ~int(umask, 8)
            found = path.stat().st_mode & 0o777
            files += path.is_file()
            if found != wanted:
                wrong.append(f"{path.relative_to(tmp_path)}: {found:o} instead of {wanted:o}")
    assert not wrong
    assert files > 40
    assert json.loads((tmp_path / "sweep" / "trials" / "0000" / "trial.json").read_text())["state"] == "complete"


def test_weights_are_made_with_the_umask(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "last.ckpt", {"a": torch.zeros(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "last.safetensors").stat().st_mode & 0o777 == 0o640
