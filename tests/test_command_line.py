"""Plain grids: `-m seed=1,2,3` trains one run after the other; what can't be one is refused before it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_tfm.command_line import hydra_verb, run_verb
from lit_tfm.train import check_grid, train

GRID = ["-m", "experiment=bert_small", "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "data.block_size=16"]
GRID += ["tokenizer.vocab_size=300", "data.val_limit=4", "trainer.accelerator=cpu", "trainer.max_steps=2"]
GRID += ["trainer.val_every=2", "budget=null"]


@pytest.fixture
def grid(tmp_path, session_cache, text_folder, monkeypatch, capsys):
    """What `python -m lit_tfm.train` does, in this process and in an empty folder; returns the status and the error."""

    def start(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(
            sys, "argv", ["train", *GRID, f"data.path={text_folder}", f"cache_dir={session_cache}", *arguments]
        )
        status = run_verb(lambda: hydra_verb(train, check_grid))
        return status, capsys.readouterr().err

    return start


def summaries(folder: Path) -> dict[str, dict]:
    return {str(path.parent.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("summary.json")}


def test_a_grid_of_seeds_trains_one_run_each(tmp_path, session_cache, text_folder) -> None:
    command = [sys.executable, "-m", "lit_tfm.train", *GRID, f"data.path={text_folder}", f"cache_dir={session_cache}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "seed=1,2,3"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    runs = summaries(tmp_path / "outputs")
    assert sorted(summary["seed"] for summary in runs.values()) == [1, 2, 3]
    assert {summary["status"] for summary in runs.values()} == {"finished"}
    assert len({summary["metrics"]["val/loss"] for summary in runs.values()}) == 3
    typed = (tmp_path / "outputs" / next(iter(runs)) / "command.txt").read_text()
    assert typed.startswith("python -m lit_tfm.train -m ")
    assert "hydra" not in typed


def test_a_run_that_fails_does_not_stop_the_others(grid, tmp_path) -> None:
    status, error = grid("model.n_heads=2,3,4", "output_dir=runs/${model.n_heads}")
    assert status == 2
    assert "not divisible by model.n_heads=3" in error
    assert sorted(summaries(tmp_path / "runs")) == ["2", "4"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["output_dir=mine"], "output_dir=mine: one folder for 2 runs"),
        (["resume=auto"], "resume=auto: 2 runs can't go on from one"),
        (["resume=mine/checkpoints/last.ckpt"], "2 runs can't go on from one"),
        (["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"], "python -m lit_tfm.sweep"),
        (["trainer.val_every=0"], "trainer.val_every=0"),
        (["bugdet=null"], "did you mean 'budget'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_is_no_grid_is_refused_before_the_first_run(grid, tmp_path, arguments, said) -> None:
    status, error = grid("seed=1,2", *arguments)
    assert status == 2
    assert len(error.splitlines()) == 1
    assert said in error
    assert not list(tmp_path.iterdir())


def test_folders_named_by_what_differs_are_gone_on_with(grid, tmp_path) -> None:
    grid("seed=1,2", "output_dir=runs/${seed}")
    status, error = grid("seed=1,2,3", "output_dir=runs/${seed}", "resume=auto", "trainer.max_steps=3")
    assert (status, error) == (0, "")
    assert {name: summary["steps"] for name, summary in summaries(tmp_path / "runs").items()} == dict.fromkeys("123", 3)
