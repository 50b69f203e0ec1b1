"""The command: what it prints, how it is stopped, what it leaves, and what mistakes get."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_tfm.holding import birth

YAML = """
experiment: bert_small
n_trials: 3
workers: 2
fixed:
  model: bert_tiny
  data: pydoc
  tokenizer: byte
  optimizer: adamw
  data.batch_size: 4
  data.block_size: 32
  data.val_limit: 4
  trainer.max_steps: 150
  trainer.val_every: 10
  trainer.accelerator: cpu
  model.d_model: 32
  model.n_layers: 1
  model.n_heads: 2
  callbacks.samples: null
  callbacks.attention: null
  callbacks.projector: null
space:
  optimizer.lr: {low: 1e-4, high: 1e-1, log: true}
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(tmp_path: Path, session_cache: Path) -> list[str]:
    (tmp_path / "mine.yaml").write_text(YAML)
    return [sys.executable, "-m", "lit_tfm.sweep", "sweep=mine.yaml", f"cache_dir={session_cache}"]


def start(command: list[str], directory: Path) -> subprocess.Popen:
    return subprocess.Popen(command, cwd=directory, env=ENVIRONMENT, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def run(command: list[str], directory: Path, timeout: float = 300) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=directory, env=ENVIRONMENT, text=True, capture_output=True, timeout=timeout)


def records(directory: Path) -> list[dict]:
    paths = sorted(directory.glob("outputs/sweeps/mine/trials/*/trial.json"))
    return [json.loads(path.read_text()) for path in paths]


def wait_for_checkpoints(directory: Path, process: subprocess.Popen, count: int) -> None:
    while len(list(directory.glob("outputs/sweeps/mine/trials/*/checkpoints/last.ckpt"))) < count:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


def test_help_answers_at_once_and_says_how_to_go_on() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "lit_tfm.sweep", "--help"], text=True,
                          capture_output=True, env=ENVIRONMENT)  # fmt: skip
    assert done.returncode == 0
    assert "Ctrl-C once" in done.stdout
    assert "storage=postgresql://" in done.stdout
    assert not re.search(r"\| +(torch|lightning|optuna)$", done.stderr, re.MULTILINE)
    assert time.monotonic() - began < 20  # a second, on a machine that does nothing else


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep=bert_smal"], "did you mean 'bert_small'"),
        ([], "type one sweep=NAME"),
        (["sweep=mine.yaml", "n_trails=3"], "did you mean 'n_trials'"),
        (
            ["sweep=mine.yaml", "storage=postgresql://me:secret@127.0.0.1:9/none"],
            "postgresql://me:***@127.0.0.1:9/none",
        ),
        (["sweep=mine.yaml", "output_dir=full"], "it holds something that is no sweep"),
        (["sweep=mine.yaml", "--status"], "there is no sweep 'mine' yet"),
    ],
)
def test_mistakes_get_one_line_and_status_2_and_leave_nothing(
    tmp_path: Path, monkeypatch, capsys, words: list[str], said: str
) -> None:
    from lit_tfm import sweep

    (tmp_path / "mine.yaml").write_text(YAML)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit_tfm.sweep", *words])
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert "secret" not in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_stopped_looked_at_and_gone_on_with(command, tmp_path: Path) -> None:
    command.append("trainer.max_steps=1500")  # longer than a look takes
    process = start(command, tmp_path)
    wait_for_checkpoints(tmp_path, process, 2)
    looked = run([*command, "--status"], tmp_path)
    assert looked.returncode == 0
    assert "2 running" in looked.stdout
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "running trials write their checkpoints" in said
    assert "the same command goes on" in said
    stopped = records(tmp_path)
    assert {record["state"] for record in stopped} == {"running"}
    assert all(birth(int(record["worker"].rpartition("-")[2])) is None for record in stopped)
    kept = [path.read_text().splitlines() for path in sorted(tmp_path.glob("outputs/sweeps/mine/trials/*/metrics.csv"))]
    again = run(command, tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "goes on: 0 of 3 trials have ended" in again.stdout
    assert set(re.findall(r"^trial (\d) +complete", again.stdout, re.MULTILINE)) == set("012")
    for before, path in zip(kept, sorted(tmp_path.glob("outputs/sweeps/mine/trials/*/metrics.csv")), strict=False):
        assert path.read_text().splitlines()[: len(before)] == before  # gone on with, to the last line
    folder = tmp_path / "outputs" / "sweeps" / "mine"
    assert "python -m lit_tfm.train experiment=outputs/sweeps/mine/best.yaml" in again.stdout
    assert (folder / "report.html").exists()
    assert (folder / "command.txt").read_text().startswith("python -m lit_tfm.sweep sweep=mine.yaml")
    assert {"sweep.yaml", "environment.json", "study.journal", "best.yaml"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_workers_stop_in_order_when_the_command_itself_is_killed(command, tmp_path: Path) -> None:
    process = start(command, tmp_path)
    wait_for_checkpoints(tmp_path, process, 2)
    process.kill()
    process.wait()
    workers = {int(record["worker"].rpartition("-")[2]) for record in records(tmp_path)}
    until = time.monotonic() + 60
    while any(birth(pid) for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert all("stopped" in record["reason"] and record["pid"] is None for record in records(tmp_path))
    assert run(command, tmp_path).returncode == 0
    assert [record["state"] for record in records(tmp_path)] == ["complete"] * 3
    assert [record["attempts"] for record in records(tmp_path)][:2] == [2, 2]


@pytest.mark.slow
def test_twice_stops_at_once(command, tmp_path: Path) -> None:
    process = start(command, tmp_path)
    wait_for_checkpoints(tmp_path, process, 2)
    pids = [record["pid"] for record in records(tmp_path)]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    until = time.monotonic() + 10
    while any(birth(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_trial_of_two_processes_is_pruned_and_dies_with_its_worker(command, tmp_path: Path) -> None:
    words = [*command, "trainer=ddp", "trainer.devices=2", "workers=1", "n_trials=1",
             "pruner={_target_: optuna.pruners.ThresholdPruner, upper: 0.1, n_warmup_steps: 150000}"]  # fmt: skip
    process = start(words, tmp_path)
    wait_for_checkpoints(tmp_path, process, 1)
    (record,) = records(tmp_path)
    ranks = ranks_of(record["pid"])
    assert len(ranks) == 2
    os.kill(int(record["worker"].rpartition("-")[2]), signal.SIGKILL)
    until = time.monotonic() + 20
    while any(birth(pid) for pid in [record["pid"], *ranks]):
        assert time.monotonic() < until
        time.sleep(0.05)
    said = process.communicate(timeout=300)[0]  # another worker goes on with it
    assert process.returncode == 0, said
    (record,) = records(tmp_path)
    assert (record["state"], record["attempts"]) == ("pruned", 2)
    summary = json.loads((tmp_path / "outputs/sweeps/mine/trials/0000/summary.json").read_text())
    assert summary["status"] == "pruned"
    assert 75 <= summary["steps"] < 150


def ranks_of(trial: int) -> list[int]:
    """The processes that train for a trial's process."""
    import psutil

    return [child.pid for child in psutil.Process(trial).children(recursive=True)
            if "lit_tfm.train" in child.cmdline() and "torch.distributed.run" not in child.cmdline()]  # fmt: skip


@pytest.mark.slow
def test_submitit_starts_workers_of_one_sweep(command, tmp_path: Path, monkeypatch) -> None:
    """As the README tells for SLURM, with submitit's local executor in SLURM's place."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    executor = submitit.AutoExecutor("outputs/slurm", cluster="local")
    executor.update_parameters(timeout_min=10, cpus_per_task=1)
    words = [*command, "workers=1", "trainer.max_steps=20", "n_trials=4"]
    jobs = [executor.submit(submitit.helpers.CommandFunction(words, verbose=False)) for _ in range(2)]
    for job in jobs:
        job.result()
    states = [record["state"] for record in records(tmp_path)]
    assert states == ["complete"] * 4
    assert len({record["worker"] for record in records(tmp_path)}) == 2
