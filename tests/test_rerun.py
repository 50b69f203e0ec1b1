"""rerun trains the stored config again, in another process and folder, to the same digits; it says what changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_tfm import config
from lit_tfm import rerun as verb
from lit_tfm.command_line import run_verb
from lit_tfm.reports.reading import Point, Run, read_run
from lit_tfm.reports.repetition import compare, environment_differences
from lit_tfm.train import train

REPOSITORY = Path(verb.__file__).parent.parent
SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=1", "trainer.precision=32", "trainer.accelerator=cpu"]
QUICK = ["trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1", "data.val_limit=8", "budget=null"]


def process(verb_name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", f"lit_tfm.{verb_name}", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def work(text_folder, session_cache, tmp_path_factory) -> Path:
    """A working directory with data/ and a run of another process, which names its data by a relative path."""
    folder = tmp_path_factory.mktemp("rerun")
    shutil.copytree(text_folder, folder / "data")
    done = process(
        "train", "experiment=char_gpt", "data.path=data", f"cache_dir={session_cache}", "deterministic=true",
        "output_dir=run", "model.dropout=0.1", *SMALL, *QUICK, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def typed(capsys, monkeypatch, tmp_path):
    """The verb in this process, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def start(*words: str) -> tuple[int, str, str]:
        status = run_verb(lambda: verb.rerun(list(words)))
        out, err = capsys.readouterr()
        return status, " ".join(out.split()), err

    return start


def test_another_process_in_another_folder_gets_the_same_digits(work, tmp_path) -> None:
    done = process("rerun", str(work / "run"), "--check", "output_dir=again", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join(done.stdout.split())
    assert "identical to the last digit: all 6 metrics" in told
    old, new = (read_run(folder) for folder in (work / "run", tmp_path / "again"))
    assert old.metrics == new.metrics
    assert [p.value for p in old.points["train/loss"]] == [p.value for p in new.points["train/loss"]]
    assert len(old.points["train/loss"]) == 6
    weights = [(folder / "checkpoints/last.safetensors").read_bytes() for folder in (work / "run", tmp_path / "again")]
    assert weights[0] == weights[1]


def test_overrides_change_it_and_the_difference_is_told(work, typed, tmp_path) -> None:
    status, out, _ = typed(str(work / "run"), "seed=2", "output_dir=again", "trainer.max_steps=4")
    assert status == 0
    assert "not identical" in out
    assert "at step 1" in out
    assert "seed, trainer.max_steps was changed" in out
    assert read_run(tmp_path / "again").seed == 2


def test_changed_data_is_refused_unless_asked_for(work, typed, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    for file in (work / "data").iterdir():
        (tmp_path / "data" / file.name).write_text(file.read_text() + "\nmore text")
    status, _, err = typed(str(work / "run"))  # data/ of the working directory comes first
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "not what the run was trained on" in err
    assert "--changed-data" in err
    assert not (tmp_path / "outputs").exists()
    status, out, _ = typed(str(work / "run"), "--changed-data", "output_dir=again", "trainer.max_steps=2")
    assert status == 0
    assert "as asked for" in out
    assert (tmp_path / "again/summary.json").exists()


def test_data_that_is_gone_is_told_with_what_to_type(work, typed, tmp_path) -> None:
    shutil.copytree(work / "run", tmp_path / "moved")
    environment = json.loads((tmp_path / "moved/environment.json").read_text())
    (tmp_path / "moved/environment.json").write_text(json.dumps({**environment, "directory": str(tmp_path / "gone")}))
    status, _, err = typed("moved")
    assert status == 2
    assert "type data.path=WHERE IT IS NOW" in err
    status, out, _ = typed("moved", f"data.path={work / 'data'}", "output_dir=again")
    assert status == 0
    assert "identical to the last digit" in out  # another place, the same data


def test_what_is_not_as_it_was_is_told_before_it_starts(work, typed, tmp_path) -> None:
    shutil.copytree(work / "run", tmp_path / "old")
    environment = json.loads((tmp_path / "old/environment.json").read_text())
    environment["packages"]["torch"] = "2.12.0"
    environment["git"] = {"commit": "0123456789abcdef", "clean": True}
    (tmp_path / "old/environment.json").write_text(json.dumps(environment))
    cfg = OmegaConf.load(tmp_path / "old/config.yaml")
    cfg.budget, cfg.deterministic = "10m", False
    (tmp_path / "old/config.yaml").write_text(OmegaConf.to_yaml(cfg))
    status, out, _ = typed("old", "dry_run=true")
    assert status == 0
    assert "torch was 2.12.0, is 2." in out
    assert "git commit was 0123456789ab, is" in out
    assert "deterministic=false" in out
    assert "budget=10m: bounded by 600 s" in out
    assert "trainer.max_steps=6" in out


@pytest.mark.parametrize("experiment", ["bert_small", "t5_small"])
def test_the_other_architectures_repeat_too(experiment, text_folder, session_cache, typed, tmp_path) -> None:
    given = [f"experiment={experiment}", f"data.path={text_folder}", f"cache_dir={session_cache}", *SMALL, *QUICK]
    given += ["data.block_size=32", "data.batch_size=4", "tokenizer.vocab_size=400", "deterministic=true"]
    train(config.compose([*given, f"output_dir={tmp_path / 'run'}"]), quiet=True)
    status, out, _ = typed("run", "output_dir=again")
    assert status == 0
    assert "identical to the last digit" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "is no run folder"),
        (["{run}", "model=bert_tiny"], "settled by the run"),
        (["{run}", "model.d_mdel=4"], "did you mean 'd_model'"),
        (["{run}", "sede=4"], "did you mean 'seed'"),
        (["{run}", "seed"], "no override"),
        (["{run}", "resume=auto"], "a rerun starts anew"),
        (["{run}", "trainer.max_steps=0"], "at least 1"),
    ],
)
def test_mistakes_are_one_line(words, says, work, typed) -> None:
    status, _, err = typed(*(word.format(run=work / "run") for word in words))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert says in err


@pytest.mark.slow
def test_a_run_of_two_processes_repeats(work, tmp_path) -> None:
    ddp = ["trainer.strategy=ddp", "trainer.devices=2"]
    first = process("rerun", str(work / "run"), *ddp, "output_dir=two", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = process("rerun", "two", "output_dir=again", "--check", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "identical to the last digit" in again.stdout


# ---- the parts -----------------------------------------------------------------------------------------------------


def run_of(values: dict[int, float], steps: int, **metrics: float) -> Run:
    run = Run(Path("x"), steps=steps, metrics=metrics)
    run.__dict__["points"] = {
        "train/loss": [Point(step, 0.1, step, value) for step, value in values.items()],
        "speed/step_seconds": [Point(step, 0.1, step, step * steps) for step in values],
    }
    return run


def test_the_last_digit_counts_and_the_clock_does_not() -> None:
    old = run_of({1: 0.1, 2: 0.2}, 2, **{"val/loss": 0.3})
    assert compare(old, run_of({1: 0.1, 2: 0.2}, 2, **{"val/loss": 0.3})).identical
    assert not compare(old, run_of({1: 0.1, 2: 0.2}, 2, **{"val/loss": 0.1 + 0.2})).identical
    found = compare(old, run_of({1: 0.1, 2: 0.2000000000000001}, 2))
    assert (found.identical, found.compared, found.equal, found.first[1].step) == (False, 2, 1, 2)
    nan = run_of({1: float("nan")}, 1)
    assert compare(nan, run_of({1: float("nan")}, 1)).identical


def test_a_run_that_was_stopped_is_compared_as_far_as_it_came() -> None:
    found = compare(run_of({1: 0.1}, 1, **{"val/loss": 5}), run_of({1: 0.1, 2: 0.2}, 2, **{"val/loss": 4}))
    assert (found.identical, found.compared, found.until, found.metrics) == (True, 1, 1, [])
    assert not compare(run_of({}, 0), run_of({1: 0.1}, 1)).identical


def test_environments_are_compared_by_what_changes_numbers() -> None:
    then = {"python": "3.11", "packages": {"torch": "2.13"}, "git": {"commit": "abc", "clean": False}, "directory": "a"}
    now = {"python": "3.11", "packages": {"torch": "2.14"}, "git": {"commit": "abc", "clean": True}, "directory": "b"}
    assert environment_differences(then, then) == []
    assert environment_differences(then, now) == [
        ("torch", "2.13", "2.14"),
        ("git commit", "abc with changes", "abc"),
    ]
    assert environment_differences({"git": None, "packages": None}, {"git": None, "packages": {}}) == []
