"""`make soak`: a real run is killed 50 times, one of two ranks 20 times, and nobody can tell from what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kills", "steps"), [(1, 50, 60), (2, 20, 40)])
def test_killed_again_and_again(tmp_path, shared, ranks, kills, steps) -> None:
    script = Path(__file__).with_name("kills.py")
    given = [
        "--data",
        shared / "wikitext-2",
        "--folder",
        tmp_path,
        "--ranks",
        ranks,
        "--kills",
        kills,
        "--steps",
        steps,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script, *map(str, given)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == kills
