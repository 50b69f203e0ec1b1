"""Memory that does not suffice: told with its sizes, or, with auto_batch, gone on with in smaller micro-batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import NO_PICTURES, SMALL

from lit_tfm import config
from lit_tfm.tasks.masked_lm import MaskedLM
from lit_tfm.tasks.out_of_memory import OutOfMemory, ran_out
from lit_tfm.train import train

OPTIONS = [
    "experiment=bert_small",
    *SMALL,
    "trainer.max_steps=6",
    "trainer.val_every=4",
    "logger.tensorboard=null",
    *NO_PICTURES,
]


class Small:
    """A device in which `room` rows of a batch fit, from optimizer step `since` on; says where it ran out."""

    def __init__(self, monkeypatch, room: int, since: int = 0, place: str = "forward") -> None:
        self.places: list[int] = []
        step, backward = MaskedLM.step, MaskedLM.backward

        def full(task, rows: int) -> None:
            if rows > room and task.trainer.global_step >= since and task.training:
                self.places.append(task.trainer.global_step)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        def in_forward(task, batch):
            output = step(task, batch)
            task.rows = len(batch["input_ids"])
            if place == "forward":
                full(task, task.rows)
            return output

        def in_backward(task, loss, *args, **kwargs):
            backward(task, loss, *args, **kwargs)
            if place == "backward":  # gradients are there, and must not be added to
                full(task, task.rows)

        monkeypatch.setattr(MaskedLM, "step", in_forward)
        monkeypatch.setattr(MaskedLM, "backward", in_backward)


@pytest.fixture
def trained(tmp_path, session_cache, text_folder):
    def run(name: str, *options: str) -> Path:
        given = [f"cache_dir={session_cache}", f"data.path={text_folder}", f"output_dir={tmp_path / name}", *options]
        return train(config.compose([*OPTIONS, *given]), quiet=True).folder

    return run


def losses(folder: Path) -> list[str]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [f"{row[0]} {row[3]} {row[4]}" for row in rows if row[3] in ("train/loss", "val/loss")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last.safetensors")


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_auto_batch_ends_with_the_bits_of_a_run_that_began_with_that_accumulation(trained, monkeypatch, place) -> None:
    expected = trained("expected", "trainer.accumulate=4")
    small = Small(monkeypatch, room=2, place=place)
    folder = trained("run", "auto_batch=true")
    assert small.places == [0, 0]  # with 8 rows, with 4; then all went on
    assert losses(folder) == losses(expected)
    one, two = weights(expected), weights(folder)
    assert all(torch.equal(one[name], two[name]) for name in one)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["accumulate"], summary["reason"]) == ("finished", 4, None)
    assert config.compose([f"resume={folder}"]).trainer.accumulate == 4


def test_no_step_is_lost_and_none_is_done_twice(trained, monkeypatch) -> None:
    """Step 3, between two checkpoints, does not fit: the steps before it stay as they were."""
    whole = trained("whole")
    small = Small(monkeypatch, room=4, since=2)
    folder = trained("run", "auto_batch=true")
    assert small.places == [2]
    assert losses(folder)[:2] == losses(whole)[:2]  # bit for bit; from there on sums are made in another order
    assert [line.split()[:2] for line in losses(folder)] == [line.split()[:2] for line in losses(whole)]
    for one, two in zip(losses(folder), losses(whole), strict=True):
        assert float(one.split()[2]) == pytest.approx(float(two.split()[2]), rel=1e-5)


def test_a_resume_does_not_try_again_what_did_not_fit(trained, monkeypatch, tmp_path) -> None:
    small = Small(monkeypatch, room=4, since=2)
    folder = trained("run", "auto_batch=true")
    again = [f"resume={folder}", "output_dir=null", "trainer.max_steps=8", "auto_batch=true"]
    trained("run", *again)
    assert small.places == [2]
    assert len(losses(folder)) == 8 + 3


def test_the_error_names_the_sizes_and_what_to_lower(trained, monkeypatch, tmp_path) -> None:
    Small(monkeypatch, room=4)
    with pytest.raises(OutOfMemory) as caught:
        trained("run")
    message = str(caught.value)
    parts = ["step 1, forward pass", "8 x 32 = 256 tokens", "data.batch_size=8 in trainer.accumulate=1 parts"]
    parts += ["parameters", "GiB", "type trainer.accumulate=2", "auto_batch=true", "Tried to allocate 2 GiB"]
    assert not [part for part in parts if part not in message]
    assert "\n" not in message
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_where_one_sample_does_not_fit_it_is_an_error(trained, monkeypatch) -> None:
    small = Small(monkeypatch, room=0)
    with pytest.raises(OutOfMemory, match=r"1 x 32 = 32 tokens.*type a smaller model"):
        trained("run", "auto_batch=true")
    assert len(small.places) == 4  # 8, 4, 2, 1


def test_a_dry_run_finds_out_as_well(trained, monkeypatch) -> None:
    Small(monkeypatch, room=4)
    with pytest.raises(OutOfMemory, match="8 x 32"):
        trained("run", "dry_run=true")


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_counts_as_memory(error, memory) -> None:
    outer = ValueError("outer")
    outer.__cause__ = error
    assert bool(ran_out(error)) == bool(ran_out(outer)) == memory


LIMITED = """
import re, resource, sys
import lit_tfm.session
from lit_tfm.train import main
extra = int(sys.argv.pop(1)) << 20  # MiB of addresses beside what the imports took
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + extra, size + extra))
sys.argv[0] = "lit_tfm.train"
main()
"""


def limited(megabytes: int, *options: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", LIMITED, str(megabytes), *OPTIONS, *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(program, capture_output=True, text=True, env=env, timeout=300)


def test_real_memory_that_runs_out(tmp_path, session_cache, text_folder) -> None:
    """The process may have so many more bytes: of 64 rows the step does not fit, of fewer it does."""
    given = [f"cache_dir={session_cache}", f"data.path={text_folder}", f"output_dir={tmp_path / 'run'}"]
    given += ["data.batch_size=64", "data.block_size=256", "trainer.max_steps=1", "model.max_length=256"]
    done = limited(75, *given, "auto_batch=true")  # from 50 to 100 it is so
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    said = [line for line in done.stdout.splitlines() if line.startswith("out of memory")]
    assert said
    assert said[-1].endswith(f"going on with trainer.accumulate={2 ** len(said)}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["accumulate"] == 2 ** len(said)


@pytest.mark.slow
def test_real_memory_that_does_not_suffice_for_anything(tmp_path, session_cache, text_folder) -> None:
    given = [f"cache_dir={session_cache}", f"data.path={text_folder}", f"output_dir={tmp_path / 'run'}"]
    done = limited(150, *given, "model.d_model=2048", "model.n_layers=8", "auto_batch=true")
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.startswith("error: out of memory (building the run)"), done.stderr
    assert len(done.stderr.splitlines()) == 1
