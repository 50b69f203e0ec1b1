"""Several processes give what one gives: started by lit_tfm, by torchrun, and as SLURM would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_tfm.launch import free_port

OPTIONS = [
    "experiment=bert_small",
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "data.block_size=32",
    "data.batch_size=7",  # does not divide by two ranks
    "data.val_limit=9",
    "tokenizer.vocab_size=400",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
    "trainer.max_steps=5",
    "trainer.val_every=5",
    "trainer.log_every=1",
    "budget=null",
]
TWO = ["trainer.devices=2"]


@pytest.fixture(scope="module")
def start(tmp_path_factory, session_cache, text_folder):
    """Runs the command line in processes of its own; returns the folder and the output."""

    def run(name: str, *options: str, program: list[str] | None = None, env: dict[str, str] | None = None):
        folder = tmp_path_factory.mktemp(name) / "run"
        given = [*OPTIONS, f"data.path={text_folder}", f"cache_dir={session_cache}", f"output_dir={folder}", *options]
        program = program or [sys.executable, "-m", "lit_tfm.train"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        done = subprocess.run([*program, *given], capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return folder, done.stdout

    return run


@pytest.fixture(scope="module")
def single(start) -> Path:
    return start("single")[0]


def losses(folder: Path) -> dict[tuple[str, str], float]:
    lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    return {(r[0], r[3]): float(r[4]) for r in rows if r[3] in ("train/loss", "val/loss", "val/masked_accuracy")}


def assert_same(folder: Path, single: Path) -> None:
    expected, found = losses(single), losses(folder)
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, rel=2e-5), place
    one, two = (load_file(f / "checkpoints" / "last.safetensors") for f in (single, folder))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one(start, single, strategy: str) -> None:
    folder, output = start(strategy, f"trainer={strategy}", *TWO, "trainer.accelerator=cpu")
    assert_same(folder, single)
    assert output.count("run folder") == 1  # one table, not one a rank
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["tokens"] == json.loads((single / "summary.json").read_text())["tokens"]


@pytest.mark.parametrize(
    "options", [[], pytest.param(["trainer=ddp", *TWO], marks=pytest.mark.slow)], ids=["one", "ddp"]
)
def test_a_checkpoint_of_fsdp_goes_on_in_one_process_and_under_ddp(start, single, options) -> None:
    folder, _ = start("parts", "trainer=fsdp", *TWO, "trainer.accelerator=cpu", "++callbacks.checkpoints.every=3")
    part = folder / "checkpoints" / "step-3.ckpt"
    start("parts-again", f"resume={part}", *options, "trainer.accelerator=cpu")
    assert_same(folder, single)


@pytest.mark.slow
def test_torchrun_from_outside(start, single) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    folder, output = start(
        "torchrun", "trainer=ddp", *TWO, "trainer.accelerator=cpu", program=[*program, "-m", "lit_tfm.train"]
    )
    assert_same(folder, single)
    assert output.count("run folder") == 1


@pytest.mark.slow
def test_slurm(tmp_path, session_cache, text_folder, single) -> None:
    """Two tasks with the variables that srun sets."""
    folder, port = tmp_path / "run", free_port()
    given = [*OPTIONS, f"data.path={text_folder}", f"cache_dir={session_cache}", f"output_dir={folder}"]
    given += ["trainer=fsdp", *TWO, "trainer.accelerator=cpu"]
    ranks = []
    for rank in range(2):
        slurm = {"SLURM_JOB_ID": str(port), "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        slurm |= {"SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1"}
        slurm |= {"SLURM_NTASKS_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env = {**os.environ, "OMP_NUM_THREADS": "1", **slurm}
        ranks.append(subprocess.Popen([sys.executable, "-m", "lit_tfm.train", *given], env=env, stdout=subprocess.PIPE))
    for rank in ranks:
        rank.communicate(timeout=300)
        assert rank.returncode == 0
    assert_same(folder, single)


DIVERGING = """
from lit_tfm.tasks.masked_lm import MaskedLM

class Diverging(MaskedLM):
    def step(self, batch):
        output = super().step(batch)
        fault = float("nan") if self.training and self.trainer.global_step == 2 else 1.0
        return output._replace(loss_sum=output.loss_sum * fault)
"""


def test_a_mistake_inside_a_rank_is_one_line_as_well(tmp_path, session_cache, text_folder) -> None:
    (tmp_path / "diverging.py").write_text(DIVERGING)
    given = [*OPTIONS, f"data.path={text_folder}", f"cache_dir={session_cache}", f"output_dir={tmp_path / 'run'}"]
    given += ["trainer=ddp", *TWO, "trainer.accelerator=cpu"]
    given += ["task._target_=diverging.Diverging", "allow_targets=diverging", "task.bad_steps=1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    program = [sys.executable, "-m", "lit_tfm.train", *given]
    done = subprocess.run(program, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "loss is nan at step 3" in done.stderr


def test_processes_that_the_config_does_not_speak_of_are_refused(tmp_path, session_cache, text_folder) -> None:
    """torchrun with two processes and a config of one would train the run twice."""
    given = [*OPTIONS, f"data.path={text_folder}", f"cache_dir={session_cache}", f"output_dir={tmp_path / 'run'}"]
    env = {**os.environ, "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}
    program = [sys.executable, "-m", "lit_tfm.train", *given]
    done = subprocess.run(program, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 2
    assert "type trainer=ddp trainer.devices" in done.stderr
