"""The GPU benchmarks, as far as a machine without a GPU can try them: tiny, on the CPU, every contestant and rung."""

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gpu_contestants
import gpu_ladder
import gpu_runs
import gpu_throughput
import matplotlib.pyplot as plt
import measure
import numpy as np
import pictures
import pytest
import torch
from gpu_contestants import GPT, WORKS, Stopwatch, work_of

from lit_tfm.session import hush
from lit_tfm.tasks.causal_lm import CausalLM
from lit_tfm.tasks.span_corruption import span_counts

FOLDER = Path(gpu_contestants.__file__).parent
TINY = ["--device", "cpu", "--tiny", "--steps", "2", "--warmup", "1", "--rounds", "1", "--dry"]


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(FOLDER / script), *TINY, *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def contestant(tmp_path, monkeypatch, capsys):
    """main() of a contestant at tiny size, in this process: what it found."""
    words = np.random.Generator(np.random.PCG64(1)).integers(97, 123, size=(400, 5), dtype=np.uint8)
    (tmp_path / "text.txt").write_text("\n".join(bytes(word).decode() for word in words))
    runs = gpu_runs.Runs(tmp_path, argparse.Namespace(tiny=True))

    def found(name: str, *options: str, side: str = "ours") -> dict:
        given = ["--side", side, "--work", name, "--text", runs.text, "--tokenizer", runs.tokenizer(name)]
        given += ["--folder", tmp_path / "1", "--device", "cpu", "--tiny", "--precision", "32"]
        monkeypatch.setattr(sys, "argv", ["gpu_contestants.py", *map(str, given), *options])
        gpu_contestants.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return found


def test_a_batch_that_does_not_fit_is_a_finding_and_no_end_of_the_benchmark(contestant, monkeypatch) -> None:
    def step(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(CausalLM, "step", step)
    assert contestant("gpt2_124m", "--steps", "2", "--warmup", "1") == {"out_of_memory": True}


def test_an_error_that_is_not_of_memory_stays_one(contestant, monkeypatch) -> None:
    def step(self, batch):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(CausalLM, "step", step)
    with pytest.raises(RuntimeError, match="shapes differ"):
        contestant("gpt2_124m", "--steps", "2", "--warmup", "1")


@pytest.mark.parametrize("name", ["gpt2_124m", "t5_base"])
def test_all_batches_of_a_packed_run_are_whole_and_alike(contestant, monkeypatch, name) -> None:
    """The text holds fewer blocks than the run takes: it is repeated, and no epoch ends within it."""
    seen, tick = [], Stopwatch.tick
    monkeypatch.setattr(Stopwatch, "tick", lambda watch, *counts: (seen.append(counts), tick(watch, *counts)))
    found = contestant(name, "--batch", "32", "--steps", "3", "--warmup", "2", "data.cross_documents=true")
    assert seen == 5 * [(32, 32 * work_of(name, tiny=True, batch=None).text)]
    assert found["shapes"] == 1


def test_documents_are_not_cut_off_by_the_number_of_blocks(contestant, monkeypatch) -> None:
    """Of documents a batch has as many as its tokens allow: a subset counted in blocks would end the epoch early."""
    rows, tick = [], Stopwatch.tick
    monkeypatch.setattr(Stopwatch, "tick", lambda watch, *counts: (rows.append(counts[0]), tick(watch, *counts)))
    words = ["data.pack=documents", "data.document=line"]
    contestant("gpt2_124m", "--batch", "2", "--steps", "2", "--warmup", "1", *words)
    assert len(rows) == 3
    assert min(rows) > 2 * 3  # blocks of a packed run


def test_a_wait_is_told_with_its_line_also_where_that_is_lightnings(tmp_path, monkeypatch) -> None:
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    said = "called a synchronizing CUDA operation (Triggered internally at /build/c10/cuda/CUDAFunctions.cpp:148.)"
    files = ["site-packages/lightning/loop.py", "elsewhere/generated.py"]
    with warnings.catch_warnings(record=True) as caught:
        hush()
        gpu_contestants.listen()
        for file in files:
            code = compile(f"import warnings\nfor _ in range(2):\n    warnings.warn({said!r})", tmp_path / file, "exec")
            exec(code, {"__name__": "lightning.loop"})
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn"]
    told = "called a synchronizing CUDA operation"
    assert gpu_contestants.waits(caught) == [f"generated.py:3: {told}", f"lightning/loop.py:3: {told}"]
    assert gpu_contestants.place(str(FOLDER.parent / "lit_tfm" / "train.py")) == "lit_tfm/train.py"


def test_what_is_compiled_anew_is_counted() -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    graphs, breaks = gpu_contestants.compiled()
    run = torch.compile(block, backend="eager")
    run(torch.ones(3))
    assert gpu_contestants.compiled() == (graphs + 2, breaks + 1)
    run(torch.ones(3, 3))
    assert gpu_contestants.compiled()[0] > graphs + 2


def test_every_rung_has_what_those_above_have() -> None:
    ladder = list(gpu_ladder.rungs(argparse.Namespace(device="cuda", warmup=15)).values())
    for word in ("--tf32", "bf16-mixed", "model.compile=true"):
        has = [word in options for options in ladder]
        assert has == sorted(has), word
    for word in ("optimizer.fused=false", "--whole-head", "data.pack=documents"):
        has = [word in options for options in ladder]
        assert has == sorted(has, reverse=True), word


def test_compiled_documents_warm_up_longer() -> None:
    for options in gpu_ladder.rungs(argparse.Namespace(device="cuda", warmup=15)).values():
        varied = {"data.pack=documents", "model.compile=true"} <= set(options)
        assert options[options.index("--warmup") + 1] == "60" if varied else "--warmup" not in options


@pytest.mark.parametrize(
    ("rates", "best", "tried"),
    [
        ({32: 100, 64: 150, 128: 151}, 64, [32, 64, 128]),  # hardly faster
        ({32: 100, 64: 150}, 64, [32, 64, 128]),  # no more memory
        ({8: 50, 4: 40}, 8, [32, 16, 8]),
        ({}, None, [32, 16, 8, 4, 2, 1]),
    ],
)
def test_the_largest_batch_is_looked_for_in_both_directions(monkeypatch, tmp_path, rates, best, tried) -> None:
    asked = []

    def measure(self, side: str, name: str, *options: str) -> dict | None:
        asked.append(int(options[options.index("--batch") + 1]))
        return {"tokens_per_second": rates[asked[-1]]} if asked[-1] in rates else None

    monkeypatch.setattr(gpu_runs.Runs, "measure", measure)
    runs = gpu_runs.Runs(tmp_path, argparse.Namespace(tiny=False))
    if best is None:
        with pytest.raises(SystemExit, match="not even a batch of 1"):
            runs.largest_batch("ours", "gpt2_124m")
    else:
        assert runs.largest_batch("ours", "gpt2_124m") == best
    assert asked == tried


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_throughput_runs(name) -> None:
    told = run("gpu_throughput.py", "--work", name, "--batch", "2")
    sides = [line.split(" | ")[1] for line in told.splitlines() if line.startswith(f"| {name} ")]
    assert sides == ["ours", "huggingface", *["nanogpt"] * (name == "gpt2_124m")]


@pytest.mark.slow
def test_ladder_runs(tmp_path) -> None:
    told = run("gpu_ladder.py", "--work", "t5_base", "--batch", "2", "--profile", "--keep", str(tmp_path))
    assert len([line for line in told.splitlines() if line.startswith("| t5_base ")]) == 7
    assert sum(line.rstrip().endswith("|") and "1 (1 to 1)" in line for line in told.splitlines()) >= 1


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="no GPU"), gpu_runs.runs(argparse.Namespace(device="cuda", keep=None)):
        pass


def test_a_kept_folder_takes_further_runs(tmp_path) -> None:
    for name in ("1", "2", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "512.json").touch()
    with gpu_runs.runs(argparse.Namespace(device="cpu", keep=tmp_path)) as runs:
        assert runs.count == 2


def test_the_stopwatch_leaves_the_warmup_out() -> None:
    watch = Stopwatch(argparse.Namespace(device="cpu", warmup=2, steps=3))
    for _ in range(4):
        watch.tick(examples=8, counted=100)
        assert not watch.ended
    watch.tick(examples=8, counted=100)
    assert watch.ended
    assert (watch.examples, watch.counted) == (24, 300)


def test_nanogpt_has_gpt2s_size_and_a_peers_flops_are_six_a_weight() -> None:
    with torch.device("meta"):
        model = GPT(work_of("gpt2_124m", tiny=False, batch=None))
    weights = sum(p.numel() for p in model.parameters())
    assert weights == pytest.approx(124.4e6, rel=0.01)
    work = work_of("gpt2_124m", tiny=False, batch=None)
    attention = 12 * work.layers * work.width * work.length
    positions = work.length * work.width
    assert gpu_contestants.flops_of_peer(work) / work.length == pytest.approx(
        6 * (weights - positions) + attention, rel=0.01
    )


def test_spans_cut_out_of_a_text_leave_what_the_peer_gets() -> None:
    work = work_of("t5_base", tiny=False, batch=None)
    hidden, spans = span_counts(np.array([work.text]), density=0.15, mean_span=3.0)
    assert work.text - hidden + spans == pytest.approx(work.length, abs=1)
    assert hidden + spans + 1 == work.targets


def test_a_checkouts_model_takes_the_place_of_our_own(tmp_path) -> None:
    (tmp_path / "model.py").write_text(
        "import dataclasses, torch\n"
        "@dataclasses.dataclass\n"
        "class GPTConfig:\n"
        "    vocab_size: int; n_layer: int; n_head: int; n_embd: int; block_size: int; dropout: float; bias: bool\n"
        "class GPT(torch.nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        self.config = config\n"
    )
    config = gpu_contestants.checkout_model(tmp_path, work_of("gpt2_124m", tiny=True, batch=4)).config
    assert (config.vocab_size, config.n_layer, config.block_size, config.bias) == (512, 2, 32, False)


def test_the_picture_has_a_bar_for_each_peer(monkeypatch) -> None:
    ratio = measure.Ratio.of([3.0, 2.0], [1.0, 1.0])
    drawn = []
    monkeypatch.setattr(pictures, "_saved", lambda name, figure, axes: drawn.append((name, figure, axes)))
    gpu_throughput.draw({"gpt2_124m": {"huggingface": ratio, "nanogpt": ratio}, "t5_base": {"huggingface": ratio}})
    ((name, figure, axes),) = drawn
    plt.close(figure)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert (name, labels) == ("speed_gpu", ["gpt2_124m\nhuggingface", "gpt2_124m\nnanogpt", "t5_base\nhuggingface"])
    assert [bar.get_height() for bar in axes.patches] == [2.5] * 3
