"""docs/sweeps.md tells the truth: its keys are those of a sweep, its yaml is read, its Python runs."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import optuna
import pytest
import yaml

from lit_tfm import config
from lit_tfm.search import settings
from lit_tfm.search.storage import connect

PAGE = Path(config.CONF).parent / "docs" / "sweeps.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="an installed package has no docs/")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_table_has_every_key_and_its_default() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    told = {key: row[1].strip() for row in rows for key in re.findall(r"`(\w+)`", row[0])}
    known = {f.name for f in fields(settings.SweepConfig)} - {"space_raw", "config_dir", "allow_targets"} | {"space"}
    assert set(told) == known
    default = settings.SweepConfig("name", "bert_small", {})
    for key in ("n_trials", "workers", "seed"):
        assert told[key] == str(getattr(default, key))
    assert yaml.safe_load(told["retries"].strip("`")) == default.retries
    assert told["metric"] == "`val/loss`, `minimize`"


def test_the_space_is_one(tmp_path: Path) -> None:
    [space] = [block for block in blocks("yaml") if block.startswith("space:")]
    (tmp_path / "page.yaml").write_text(f"experiment: bert_small\n{space}")
    found = settings.load([f"sweep={tmp_path / 'page.yaml'}"])
    assert len(found.space.entries) == len(yaml.safe_load(space)["space"])
    words = ["space.optimizer.lr={low: 1e-3, high: 1e-2}", "space.optimizer.lr.low=1e-3", "~space.model.d_ff"]
    changed = settings.load([f"sweep={tmp_path / 'page.yaml'}", *words])
    assert "model.d_ff" not in changed.space.entries
    assert changed.space.entries["optimizer.lr"].low == 1e-3


def test_the_commands_name_sweeps_that_ship() -> None:
    named = set(re.findall(r"lit_tfm\.sweep sweep=(\w+)", PAGE.read_text(encoding="utf-8")))
    assert named - {"NAME", "PATH"} <= set(settings.known_sweeps())


def test_optuna_reads_the_study(tmp_path: Path) -> None:
    [code] = [block for block in blocks("python") if "look(" in block]
    folder = tmp_path / "outputs" / "sweeps" / "bert_small"
    folder.mkdir(parents=True)
    study = optuna.create_study(study_name="bert_small", storage=connect(None, folder))
    study.add_trial(optuna.trial.create_trial(value=1.25, params={}, distributions={}))
    environment = {**os.environ, "PYTHONPATH": str(Path(config.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "1.25 {}\n", done.stderr


@pytest.mark.slow
def test_submitit_starts_workers(tmp_path: Path, text_folder: Path, session_cache: Path) -> None:
    """As the page says it, with submitit's local executor in SLURM's place and a small sweep in a large one's."""
    pytest.importorskip("submitit")
    [code] = [block for block in blocks("python") if "import submitit" in block]
    small = {
        "experiment": "bert_small",
        "fixed": {
            "model": "bert_tiny",
            "data.path": str(text_folder),
            "data.block_size": 32,
            "data.batch_size": 8,
            "data.val_limit": 8,
            "tokenizer.vocab_size": 400,
            "trainer.max_steps": 4,
            "cache_dir": str(session_cache),
        },
        "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    code = code.replace("sweep=bert_small", "sweep=small.yaml").replace("n_trials=500", "n_trials=4")
    code = code.replace("postgresql://me@host/sweeps", "sqlite:///study.db").replace("* 16", "* 2")
    code = code.replace("workers=8", "workers=1").replace(", gpus_per_node=8, cpus_per_task=64", "")
    (tmp_path / "submit_sweep.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(config.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "submit_sweep.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.stdout.splitlines()[-1:] == ["['done', 'done']"], done.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "sweeps" / "bert" / "trials").iterdir()) == [
        f"{number:04d}" for number in range(4)
    ]
    assert (tmp_path / "sweeps" / "bert" / "best.yaml").exists()
