"""A sweep over a real PostgreSQL server, which the tests start: two commands in two working directories share it."""

import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import objectives
import optuna
import pytest
from optuna.trial import TrialState

from lit_tfm.errors import UserError
from lit_tfm.search.settings import load
from lit_tfm.search.storage import connect
from lit_tfm.search.study import open_study
from lit_tfm.search.supervisor import run_sweep

PASSWORD = "quite-secret"
FAST = ["trainer.max_steps=20", "trainer.val_every=5", "data.val_limit=4", "data.batch_size=4", "data.block_size=32",
        "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "optimizer=adamw", "callbacks.samples=null",
        "callbacks.attention=null", "callbacks.projector=null", "trainer.accelerator=cpu"]  # fmt: skip


class Server(str):
    """Its URL."""

    restart: Callable[[], None]


@pytest.fixture(scope="module")
def server():
    """`postgresql://` URL of a server of this test's own, stopped afterwards."""
    programs = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if programs is None:
        pytest.skip("PostgreSQL's initdb is not installed (Debian: postgresql)")
    binaries = Path(os.path.realpath(programs)).parent
    folder = Path(tempfile.mkdtemp(prefix="lit_tfm-postgres-"))
    user = {}
    if os.geteuid() == 0:  # the server refuses to be run by root
        name = next((n for n in ("postgres", "nobody") if n in {entry.pw_name for entry in pwd.getpwall()}), None)
        if name is None:
            pytest.skip("initdb refuses root, and there is no user postgres or nobody to run it as")
        user = {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}
        shutil.chown(folder, name)
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [binaries / program, *arguments], text=True, cwd=folder, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=120, **user,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    try:
        access = ["-U", "lit", "-A", "scram-sha-256", f"--pwfile={folder}/password"]
        run("initdb", "-D", f"{folder}/data", *access, "--no-sync", "-E", "UTF8")
        options = f"-p {port} -k {folder} -h 127.0.0.1 -F"
        run("pg_ctl", "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
        server = Server(f"postgresql://lit:{PASSWORD}@127.0.0.1:{port}/postgres")
        again = ["-D", f"{folder}/data", "-l", f"{folder}/log", "-m", "immediate", "-w", "restart"]
        server.restart = lambda: run("pg_ctl", *again)
        yield server
        run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(directory: Path, words: list[str]) -> subprocess.Popen:
    """The command itself, in a working directory of its own."""
    directory.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lit_tfm.sweep", *words], cwd=directory, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_for_trials(url: str, name: str, count: int, process: subprocess.Popen, states: tuple = ()) -> list:
    storage = connect(url, Path())
    for _ in range(1200):
        names = {study.study_name: study._study_id for study in storage.get_all_studies()}
        trials = storage.get_all_trials(names[name], states=states or None) if name in names else []
        if len(trials) >= count:
            return trials
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError("nothing began")


@pytest.fixture
def words(server, a_sweep, session_cache, tmp_path):
    path = a_sweep().name  # the yaml lies beside the folder
    return [f"sweep={tmp_path / path}.yaml", f"storage={server}", f"cache_dir={session_cache}", "workers=1", *FAST]


def test_two_commands_in_two_directories_finish_a_sweep_together(server, words, tmp_path, monkeypatch) -> None:
    given = [*words, "name=together", "n_trials=8"]
    other = start(tmp_path / "there", given)
    wait_for_trials(server, "together", 1, other)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    swept = run_sweep(load(given), quiet=True)
    said = other.communicate(timeout=120)[0]
    assert other.returncode == 0, said
    trials = [trial for trial in swept.study.trials if trial.state != TrialState.WAITING]
    assert [trial.number for trial in trials] == list(range(8))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    found = {where: {int(p.name) for p in (tmp_path / where).glob("outputs/sweeps/together/trials/*")}
             for where in ("here", "there")}  # fmt: skip
    assert found["here"]
    assert found["there"]
    assert found["here"].isdisjoint(found["there"])
    assert found["here"] | found["there"] == set(range(8))
    for trial in trials:
        folder = Path(trial.user_attrs["holder"]["folder"])
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
        assert json.loads((folder / "trial.json").read_text())["value"] == trial.value
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert PASSWORD.encode() not in file.read_bytes(), file
    assert PASSWORD not in said


@pytest.mark.slow
def test_one_of_two_commands_is_killed_and_the_other_goes_on_with_its_trial(
    server, words, tmp_path, monkeypatch
) -> None:
    given = [*words, "name=bereft", "n_trials=4", "trainer.max_steps=400", "trainer.val_every=20"]
    other = start(tmp_path / "there", given)
    wait_for_trials(server, "bereft", 1, other)
    folder = tmp_path / "there" / "outputs" / "sweeps" / "bereft" / "trials" / "0000"
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert other.poll() is None
        time.sleep(0.05)
    os.killpg(other.pid, signal.SIGKILL)  # the supervisor, its forkserver ...
    record = json.loads((folder / "trial.json").read_text())
    os.kill(int(record["worker"].rpartition("-")[2]), signal.SIGKILL)  # ... and its worker
    events = {path.name for path in folder.glob("events.*")}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    swept = run_sweep(load(given), quiet=True, pages=False)
    assert all(trial.state == TrialState.COMPLETE for trial in swept.study.trials)
    assert Path(swept.study.trials[0].user_attrs["holder"]["folder"]) == folder
    assert events < {path.name for path in folder.glob("events.*")}  # gone on with, in its own folder
    assert json.loads((folder / "trial.json").read_text())["attempts"] == 2


def test_a_server_that_is_restarted_ends_no_trial(server, words, a_sweep) -> None:
    settings = a_sweep(f"storage={server}", "name=restarted", "n_trials=6", "workers=2", "retries=0")

    def restart() -> None:
        while not (settings.folder / "trials" / "0001" / "trial.json").exists():
            time.sleep(0.02)
        server.restart()

    restarted = threading.Thread(target=restart, daemon=True)
    restarted.start()
    swept = run_sweep(settings, objectives.sleeps, quiet=True, pages=False)
    restarted.join()
    assert [trial.state for trial in swept.study.trials] == [TrialState.COMPLETE] * 6
    assert {trial.user_attrs["holder"]["attempt"] for trial in swept.study.trials} == {1}


def test_a_database_that_may_only_be_read_is_told_and_no_study_made(server, a_sweep, tmp_path) -> None:
    import sqlalchemy

    open_study(a_sweep(f"storage={server}", "name=first"), tmp_path)
    engine = sqlalchemy.create_engine(server.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE ROLE reader LOGIN PASSWORD 'quite-secret'"))
        connection.execute(sqlalchemy.text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))
    engine.dispose()
    reader = server.replace("lit:", "reader:")
    for name in ("first", "second"):
        with pytest.raises(UserError, match="permission denied") as refused:
            open_study(a_sweep(f"storage={reader}", f"name={name}"), tmp_path)
        assert "\n" not in str(refused.value)
        assert PASSWORD not in str(refused.value)
    with pytest.raises(UserError, match="password authentication failed") as refused:
        open_study(a_sweep(f"storage={server.replace(PASSWORD, 'wrong-one')}"), tmp_path)
    assert "wrong-one" not in str(refused.value)
    storage = connect(server, tmp_path)
    assert "second" not in {study.study_name for study in storage.get_all_studies()}
    assert isinstance(storage, optuna.storages.BaseStorage)
