"""A machine that can't reach the hub: told within seconds, and trained on the built-in text with a notice."""

import json
import os
import subprocess
import sys

from lit_tfm.launch import free_port

TINY = ["model=bert_tiny", "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "tokenizer.vocab_size=400"]
STEP = [
    "trainer.accelerator=cpu",
    "trainer.max_steps=1",
    "trainer.val_every=1",
    "data.val_limit=4",
    "data.batch_size=2",
]


def start(tmp_path, cache, *arguments: str) -> subprocess.CompletedProcess:
    closed = f"http://127.0.0.1:{free_port()}"  # nobody listens there
    env = {**os.environ, "HF_ENDPOINT": closed, "HF_HOME": str(tmp_path / "hf"), "LIT_TFM_CACHE": str(cache)}
    program = [sys.executable, "-m", "lit_tfm.train", "experiment=bert_small", *TINY, *STEP, *arguments]
    return subprocess.run(program, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)


def test_the_built_in_text_is_used_with_a_notice_and_recorded(tmp_path, session_cache) -> None:
    done = start(tmp_path, session_cache, "output_dir=run")
    assert done.returncode == 0, done.stderr
    assert "another data set than asked for" in done.stdout
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert "pydoc" in record["name"]
    assert record["notice"]
    assert "pydoc" in json.loads((tmp_path / "run" / "summary.json").read_text())["data"]


def test_without_a_fallback_it_is_a_mistake_that_says_what_to_type(tmp_path, session_cache) -> None:
    done = start(tmp_path, session_cache, "data.fallback=null", "output_dir=run")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "data.path=" in done.stderr
    assert not (tmp_path / "run").exists()
