"""The benchmarks of the training step: their own arithmetic, and that each runs, tiny."""

import os
import subprocess
import sys
from pathlib import Path

import extras_cost
import framework_cost
import numpy as np
import pytest
import throughput

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = ["--rounds", "1", "--steps", "2", "--d-model", "32", "--layers", "1"]
TEXT = [*TINY, "--length", "16", "--batch", "2", "--vocab", "400", "--dry"]


def test_a_part_counts_without_those_inside_it(monkeypatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr(extras_cost.time, "perf_counter", lambda: next(clock))
    watch = extras_cost.Watch()
    with watch.part("outer"), watch.part("inner"):
        pass
    assert dict(watch.seconds) == {"inner": 3.0, "outer": 7.0}
    assert dict(watch.calls) == {"inner": 1, "outer": 1}


def test_what_the_framework_adds_is_the_difference_of_medians() -> None:
    ours, bare = ([framework_cost.Seconds(c, p) for c, p in steps] for steps in ([(2, 3), (4, 5)], [(1, 2), (2, 2)]))
    step, more, clock, processor = framework_cost.compared(ours, bare)
    assert (step, more) == ("2000.0 ms", "+2000.00 ms")
    assert (clock.median, clock.low, clock.high) == (2.0, 2.0, 2.0)
    assert (processor.median, processor.low, processor.high) == (2.0, 1.5, 2.5)


def test_the_span_peer_hides_and_tells_the_same_tokens() -> None:
    peer = object.__new__(throughput.SpanPeer)
    peer.sentinels, peer.end, peer.random = np.arange(100, 120), 99, np.random.default_rng(3)
    for length in (20, 64, 101):
        tokens = np.arange(length) % 90
        inputs, labels = peer.corrupt(tokens)
        kept, told = inputs[inputs < 90], labels[labels < 90]
        assert sorted([*kept, *told]) == sorted(tokens)
        assert len(told) == round(length * 0.15)
        assert labels[-1] == 99  # its end; the encoder reads none, as ours
        assert (inputs >= 100).sum() in ((labels >= 100).sum(), (labels >= 100).sum() - 1, (labels >= 100).sum() + 1)


def run(name, *words, cache):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
    command = [sys.executable, str(FOLDER / f"{name}.py"), *words, f"cache_dir={cache}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("throughput", ["--skip", "1", *TEXT], "| t5 |"),
        ("nanogpt_step", ["--compile", "false", *TEXT, "--"], "nanoGPT is a loop written"),
        ("memory", TEXT, "| model and training |"),
    ],
)
def test_language_models_run_tiny(name, words, expected, text_folder, session_cache) -> None:
    text = run(name, *words, f"data.path={text_folder}", cache=session_cache)
    assert expected in text


@pytest.mark.slow
def test_mixed_lengths_runs_tiny(session_cache, shared) -> None:
    sets = ["--sets", f"emotion={shared}/emotion", "--batch", "4", "--dry", "--", "tokenizer.vocab_size=300"]
    assert "| emotion |" in run("mixed_lengths", *TINY, *sets, cache=session_cache)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("framework_cost", ["--bursts", "2", "--steps", "10", "--size", "1 M", "--dry"], "| 1.02 M |"),
        ("extras_cost", ["--every", "4", "--validations", "2", "--blocks", "4", "--size", "1 M", "--dry"], "| texts |"),
    ],
)
def test_characters_run_tiny(name, words, expected, session_cache, shared) -> None:
    path = f"data.path={shared}/tinyshakespeare"
    assert expected in run(name, *words, path, cache=session_cache)
