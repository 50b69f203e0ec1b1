"""docs/first_hour.md: every command in it is run, in order, as it stands there, with settings that make it short."""

import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from lit_tfm import config
from lit_tfm.build import build
from lit_tfm.hardware import choose
from lit_tfm.search.settings import load

DOC = Path(__file__).parents[1] / "docs" / "first_hour.md"
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
]
QUICK = ["trainer.max_steps=6", "trainer.val_every=3", "data.val_limit=8", "data.batch_size=4"]
TINY = ["model.d_model=16", "model.n_layers=1", "model.n_heads=1", "trainer.precision=32", "trainer.accelerator=cpu"]
# Appended here, so that the commands of the page can be those a person types.
SHORT = {
    "train": [*QUICK, *TINY, "trainer.log_every=1"],
    "sweep": ["n_trials=2", "workers=1", "trainer.max_steps=4", "trainer.precision=32", "trainer.accelerator=cpu"],
    "generate": ["--max-new-tokens", "8", "--device", "cpu"],
    "evaluate": ["--resamples", "100"],
    "predict": [],
    "compare": [],
}


def shortened(command: str) -> list[str]:
    words = shlex.split(command)
    verb = words[2].removeprefix("lit_tfm.")
    added = SHORT[verb] if "--status" not in words else []
    if any(word.startswith("resume=") for word in words):
        added = ["trainer.max_steps=9"]  # the rest is the run's own
    return [*words[2:], *added]


def run_here(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m ...` in this process: a dozen imports of torch would take longer than all the rest."""
    monkeypatch.setattr(sys, "argv", arguments)
    status = None
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
    assert not status, f"{shlex.join(arguments)} ended with {status}"


def check(command: str) -> None:
    """That what was appended hides no mistake: the command as it stands is composed and built, if not trained."""
    _, _, verb, *words = shlex.split(command)
    if verb == "lit_tfm.train":
        cfg = config.compose(words)
        build(cfg, choose(cfg.trainer))
    if verb == "lit_tfm.sweep":
        load([word for word in words if word != "--status"])


def look(command: str) -> None:
    """Start TensorBoard as the page says, until it answers with the run."""
    words = [sys.executable, "-m", "tensorboard.main", *shlex.split(command)[1:], "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\w.:]+/", line)))
        until = time.monotonic() + 60
        while b"hour/one" not in urlopen(f"{address}data/runs", timeout=30).read():
            assert time.monotonic() < until, "the run is not shown"
            time.sleep(0.2)
    finally:
        process.terminate()  # SIGINT is ignored by what a shell starts in the background
        process.communicate()


def test_the_page_holds_the_whole_way():
    verbs = [command.split()[2].removeprefix("lit_tfm.") for command in COMMANDS if command.startswith("python")]
    assert verbs[:2] == ["train", "train"]
    assert {"train", "compare", "sweep", "generate", "evaluate", "predict"} == set(verbs)
    assert [command for command in COMMANDS if not command.startswith("python -m lit_tfm.")] == [
        "tensorboard --logdir outputs"
    ]


def test_every_command_of_the_first_hour(tmp_path, session_cache, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_TFM_CACHE", str(session_cache))
    for command in COMMANDS:
        if command.startswith("tensorboard"):
            look(command)
        else:
            check(command)
            run_here(shortened(command), monkeypatch)
    outputs = tmp_path / "outputs"
    assert sorted(path.name for path in (outputs / "hour").iterdir()) == ["found", "one", "slow"]
    assert (tmp_path / "report.html").stat().st_size > 1e6
    assert (outputs / "sweeps" / "pydoc_quick" / "report.html").exists()
    assert '"steps": 9' in (outputs / "hour" / "one" / "summary.json").read_text()  # made longer at the end
    shown = capfd.readouterr().out
    assert "Return the " in shown
    assert "2 of 2 done" in shown
