"""A data set is one yaml; a task is one file, one yaml, one test. Both are done here as the README shows them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
STEP = ["trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_every=2", "budget=null", "data.val_limit=8"]
SMALL = ["model.d_model=32", "model.n_layers=1", "model.n_heads=2", "tokenizer.vocab_size=300"]


def files_shown() -> dict[str, str]:
    """Code blocks of the README that stand under a `<!-- file: NAME -->` line."""
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", README.read_text(), flags=re.S))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """The README's files in a folder of their own, outside the repository."""
    shown = files_shown()
    assert {"my/data/reviews.yaml", "my/task/replaced_tokens.yaml", "my_tasks.py", "test_my_tasks.py"} <= shown.keys()
    for name, content in shown.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def start(folder: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "LIT_TFM_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


def test_a_data_set_is_one_yaml(outside, session_cache, labelled_csv) -> None:
    (outside / "reviews.csv").write_bytes(labelled_csv.read_bytes())
    command = ["-m", "lit_tfm.train", "--config-dir", "my", "data=reviews", "model=bert_tiny", "task=classification"]
    done = start(outside, session_cache, *command, *SMALL, *STEP)
    assert done.returncode == 0, done.stderr
    assert "val/accuracy" in done.stdout


def test_a_task_is_one_file_one_yaml_one_test(outside, session_cache, text_folder) -> None:
    command = ["-m", "lit_tfm.train", "--config-dir", "my", "task=replaced_tokens", "model=bert_tiny", "data=text"]
    command += ["allow_targets=my_tasks", f"data.path={text_folder}"]
    done = start(outside, session_cache, *command, *SMALL, *STEP)
    assert done.returncode == 0, done.stderr
    assert "val/loss" in done.stdout
    done = start(outside, session_cache, "-m", "pytest", "-q", "test_my_tasks.py")
    assert done.returncode == 0, done.stdout
