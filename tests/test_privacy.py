"""Nothing is sent anywhere, and no credential is written down."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lit_tfm import runs
from lit_tfm.runs import command, without_passwords

PASSWORD, TOKEN = "pw-of-a-user", "hf_tokenofauser0123456789"

# Every verb on local data, while every attempt to reach a network is noted and refused.
GUARDED = """
import json, os, socket, sys, time

tried = []

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        # A path is a socket of this machine's own: the workers of a sweep.
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if not isinstance(address, (str, bytes)) or event.startswith("socket.get"):
            with open(os.environ["TRIED"], "a") as file:
                file.write(f"{event} {address}\\n")
            raise OSError("no network here")

sys.addaudithook(refuse)
"""
VERBS = """
import contextlib, io, os, sys
from lit_tfm import config, evaluate, predict
from lit_tfm.compare import compare, parser
from lit_tfm.generate import generate
from lit_tfm.rerun import rerun
from lit_tfm.search.settings import load
from lit_tfm.search.supervisor import run_sweep
from lit_tfm.train import train

tiny = ["model.d_model=16", "cache_dir=cache", "model.n_layers=1", "model.n_heads=1", "trainer.accelerator=cpu"]
tiny += ["tokenizer=byte", "trainer.max_steps=1"]
labelled = ["model=bert_tiny", "task=classification", "data=csv", "data.path=" + sys.argv[1], *tiny]
running = ["model=gpt_tiny", "task=causal_lm", "data=text", "data.path=" + sys.argv[2], "data.block_size=16", *tiny]

if __name__ == "__main__":
    train(config.compose([*labelled, "output_dir=run", "budget=null"]), quiet=True)
    train(config.compose([*running, "output_dir=other", "budget=null", "data.val_limit=2"]), quiet=True)
    with contextlib.redirect_stdout(io.StringIO()):
        predict.predict(["run", "a fine film"])
        evaluate.evaluate(["run", "--split", "validation", "--resamples", "0"])
        generate(["other", "--prompt", "a text", "--max-new-tokens", "2"])
        rerun(["run", "dry_run=true"])
        compare(parser().parse_args(["run", "--html", "compare.html"]))
    sweep = load(["sweep=s.yaml", "output_dir=sweep", "n_trials=1", "budget=1e3 tokens", *labelled[:-1]])
    assert run_sweep(sweep, quiet=True).status == "done"
    assert os.path.exists("sweep/report.html")
"""


@pytest.mark.slow
def test_every_verb_without_a_network(labelled_csv, text_folder, tmp_path) -> None:
    """With a guard in every process, also those that are started, that notes each attempt; and, where the machine lets
    one have it, in a network of its own that has not even a loopback interface, which library code in C meets too."""
    (tmp_path / "sitecustomize.py").write_text(GUARDED)
    (tmp_path / "verbs.py").write_text(VERBS)
    (tmp_path / "s.yaml").write_text("experiment: bert_small\nspace: {optimizer.lr: {low: 1e-3, high: 1e-2}}\n")
    tried = tmp_path / "tried"
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "verbs.py", str(labelled_csv), str(text_folder)]
    if shutil.which("unshare") and not subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        command = ["unshare", "-rn", *command]
    env = {**os.environ, "PYTHONPATH": paths, "TRIED": str(tried)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not tried.exists(), tried.read_text()


def test_that_guard_sees(tmp_path) -> None:
    (tmp_path / "sitecustomize.py").write_text(GUARDED)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "TRIED": str(tmp_path / "tried")}
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert "127.0.0.1" in (tmp_path / "tried").read_text()


def test_the_libraries_are_asked_to_send_nothing() -> None:
    """Where a data set is fetched from the hub: no usage data, no counting of downloads elsewhere."""
    code = "import lit_tfm.data.sources.hub, datasets, huggingface_hub.constants as c; "
    code += "print(c.HF_HUB_DISABLE_TELEMETRY, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS)"
    env = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and "DOWNLOAD_COUNTS" not in k}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr


# ---- credentials -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (f"storage=postgresql://me:{PASSWORD}@host/db", "storage=postgresql://me:***@host/db"),
        (f"x=https://{TOKEN}@host/a b=2", "x=https://***@host/a b=2"),
        (f"a=mysql://u:{PASSWORD}@h/d,b=s3://k:{PASSWORD}@h", "a=mysql://u:***@h/d,b=s3://k:***@h"),
        (f"storage=postgresql://me:{PASSWORD}:@/x@host/db", "storage=postgresql://me:***@host/db"),
        (f"storage=postgresql:///db?user=me&password={PASSWORD}", "storage=postgresql:///db?user=me&password=***"),
        (f"logger.mine.api_key={TOKEN} seed=1", "logger.mine.api_key=*** seed=1"),
        (f"token: {TOKEN}", "token: ***"),
        ("storage=postgresql://me@host/db", "storage=postgresql://me@host/db"),
        ("tokenizer.path=a@b data.path=x tokens=5 n_tokens: 3", "tokenizer.path=a@b data.path=x tokens=5 n_tokens: 3"),
        ("mask_token: <mask> token: null", "mask_token: <mask> token: null"),
        ("see http://example.org/a?b=1", "see http://example.org/a?b=1"),
    ],
)
def test_passwords_are_masked(given: str, kept: str) -> None:
    assert without_passwords(given) == kept


def test_what_was_typed_is_kept_without_them(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", f"storage=postgresql://me:{PASSWORD}@h/d", f"logger.x.token={TOKEN}"])
    assert PASSWORD not in command()
    assert TOKEN not in command()
    monkeypatch.setenv(runs.COMMAND_VARIABLE, f"python -m x storage=postgresql://me:{PASSWORD}@h/d")
    assert PASSWORD not in command()


def test_no_file_of_a_run_holds_one(run, text_folder, monkeypatch, tmp_path) -> None:
    """Tokens in the environment, and one in the config."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    given = ["model=bert_tiny", "task=masked_lm", "data=text", f"data.path={text_folder}", "trainer.max_steps=1"]
    given += ["data.val_limit=2", f"tags=['postgresql://me:{PASSWORD}@host/db']"]
    folder = run(*given).folder
    for path in filter(Path.is_file, folder.rglob("*")):
        content = path.read_bytes()
        assert TOKEN.encode() not in content, path
        assert PASSWORD.encode() not in content, path
    assert "environ" not in json.loads((folder / "environment.json").read_text())


@pytest.mark.slow
def test_a_sweep_whose_storage_has_a_password(tmp_path) -> None:
    """In no file, on no screen and in no traceback: the database is not even there."""
    (tmp_path / "s.yaml").write_text("experiment: bert_small\nspace: {optimizer.lr: {low: 1e-3, high: 1e-2}}\n")
    words = ["sweep=s.yaml", f"storage=postgresql://me:{PASSWORD}@127.0.0.1:9/db", "output_dir=sweep"]
    for full in ("0", "1"):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HYDRA_FULL_ERROR": full}
        done = subprocess.run(
            [sys.executable, "-m", "lit_tfm.sweep", *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == (1 if full == "1" else 2)
        assert PASSWORD not in done.stdout + done.stderr
        assert "storage=postgresql" in done.stderr
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert PASSWORD.encode() not in path.read_bytes(), path
