"""The benchmarks of data preparation, of the start and of two processes still run, on next to nothing."""

import os
import subprocess
import sys
from pathlib import Path

import measure
import pytest

SCRIPTS = {
    "data_preparation.py": ["| cold | prepared |", "| warm | whole process |"],
    "start_up.py": ["| process start to first step |", "| `--help` |"],
    "distributed.py": ["| ddp |", "| fsdp |", "| two at once |"],
}
TINY = {"distributed.py": ["--steps", "6", "--batch", "2", "--length", "16", "--width", "32", "--layers", "1"]}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs(script: str, tmp_path: Path) -> None:
    for split, lines in (("train", 400), ("valid", 60)):
        text = "".join(f" the {n} river ran under bridge number {n % 7} , and nobody saw it . \n" for n in range(lines))
        (tmp_path / f"{split}.txt").write_text(f" = Rivers = \n \n{text}")
    command = [sys.executable, str(Path(measure.__file__).with_name(script)), "--path", str(tmp_path)]
    command += ["--rounds", "1", "--dry", *TINY.get(script, [])]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    for row in SCRIPTS[script]:
        assert row in done.stdout
