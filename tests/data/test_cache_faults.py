"""Caches and what can befall them: killed between any two file operations, a full disk, another's folder, new text."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from lit_tfm.data.language_modeling import LanguageModelingData
from lit_tfm.data.sources.files import Files
from lit_tfm.data.store import TokenStore, build_once, damage, write_store
from lit_tfm.data.tokenizers import Byte
from lit_tfm.errors import UserError

ROOT = Path(__file__).parents[2]
DOCUMENTS = [np.arange(9000) % 250, np.arange(3)]
TOUCHING = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir", "os.listdir", "shutil.rmtree")


def fill(folder: Path) -> None:
    write_store(folder / "train", DOCUMENTS, 256)
    (folder / "tokenizer.json").write_text("{}" * 3000)


def build_and_die_at(cache: Path, operation: int) -> int:
    """A process of its own that is killed before its n-th file operation. Returns its exit status, -9 if killed."""
    child = os.fork()
    if child == 0:
        left = itertools.count(operation, -1)

        def hook(event: str, arguments: tuple) -> None:
            if event in TOUCHING and str(cache) in str(arguments[:1]) and next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            build_once(cache, "key", fill)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole(folder: Path) -> bool:
    store = TokenStore(folder / "train")
    return damage(folder) is None and all(np.array_equal(store.document(i), d) for i, d in enumerate(DOCUMENTS))


@pytest.fixture
def memory():
    """A folder where syncing costs nothing."""
    place = tempfile.mkdtemp(prefix="lit_tfm_", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    yield Path(place)
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("before", ["nothing", "damaged", "left by a dead one"])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_between_any_two_file_operations(memory, before, step):
    """What has its final name is whole, or known not to be; and the next process makes it whole."""
    for operation in itertools.count(len(before) % step, step):
        cache = memory / str(operation)
        if before == "damaged":
            folder = build_once(cache, "key", fill)
            (folder / "train" / "tokens.bin").write_bytes(b"x" * 9003)
        elif before == "left by a dead one":
            (cache / ".key.tmp-1").mkdir(parents=True)
            (cache / ".key.tmp-1" / "tokens.bin").write_bytes(b"half")
        status = build_and_die_at(cache, operation)
        final = cache / "key"
        assert status == 0 or not final.is_dir() or damage(final) is not None or whole(final)
        assert whole(build_once(cache, "key", fill))
        assert sorted(p.name for p in cache.iterdir()) == ["key", "key.lock"]
        shutil.rmtree(cache)
        if status == 0:
            break
    assert operation > 20, "so many operations were tried"


PREPARE = """
import sys
from lit_tfm.data.language_modeling import LanguageModelingData
from lit_tfm.data.tokenizers import BPE
data = LanguageModelingData(BPE(vocab_size=400), path=sys.argv[1], cache_dir=sys.argv[2], document="line")
print("ready", flush=True)
data.prepare_data()
print(data.facts.tokenizer.hash, int(data.stores["train"].tokens.astype(int).sum()), flush=True)
"""


def prepare(path: Path, cache: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(path), str(cache)], env=env, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_at_any_time_and_eight_at_once(tmp_path, shared_data):
    """Whole preparations of real text: killed 20 times at random, then eight processes on what that left."""
    text = tmp_path / "train.txt"
    text.write_text((shared_data / "wikitext-2" / "valid.txt").read_text())
    [wanted, began] = [prepare(text, tmp_path / "undisturbed"), time.time()]
    result = wanted.communicate()[0].splitlines()[-1]
    draw, cache = np.random.default_rng(0), tmp_path / "cache"
    for _ in range(20):
        process = prepare(text, cache)
        process.stdout.readline()
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
    together = [prepare(text, cache) for _ in range(8)]
    assert {process.communicate(timeout=300)[0].splitlines()[-1] for process in together} == {result}
    left = [p.name for kind in cache.iterdir() for p in kind.iterdir() if p.name.startswith(".")]
    assert left == [], f"{time.time() - began:.0f} s"


# -- disks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 kB, in memory; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_fills_up_at_any_moment(small_disk):
    """Room for nothing, one page, two ...: told each time, nothing half-made; with enough room it is made."""
    outcomes = []
    for pages in range(14):
        (small_disk / "others").write_bytes(bytes(128 * 1024 - 4096 * pages))
        told = ""
        try:
            outcomes.append(whole(build_once(small_disk / "cache", "key", fill)))
        except UserError as error:
            told = str(error)
            outcomes.append(False)
        assert outcomes[-1] or ("is full (No space left on device" in told and "cache_dir=PATH" in told)
        folders = [p.name for p in (small_disk / "cache").glob("*") if p.is_dir()]
        assert folders == (["key"] if outcomes[-1] else [])
        shutil.rmtree(small_disk / "cache", ignore_errors=True)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_a_cache_that_can_only_be_read_is_read_and_no_more(small_disk):
    folder = build_once(small_disk, "key", fill)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert build_once(small_disk, "key", lambda folder: pytest.fail("built again")) == folder
    with pytest.raises(UserError, match=r"can't be written \(Read-only file system\).*cache_dir=PATH"):
        build_once(small_disk, "another", fill)


# -- sources that change -------------------------------------------------------------------------------------------


def tokens_of(path: Path, cache: Path) -> bytes:
    data = LanguageModelingData(Byte(), path=str(path), cache_dir=cache)
    data.prepare_data()
    return data.stores["train"].tokens.tobytes()


def test_a_source_that_changed_is_read_again_though_size_and_time_are_the_same(tmp_path):
    text = tmp_path / "train.txt"
    text.write_text("some words of the first kind\n" * 50)
    before = tokens_of(text, tmp_path / "cache")
    stat = text.stat()
    text.write_text("some words of the other kind\n" * 50)
    os.utime(text, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (text.stat().st_size, text.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert tokens_of(text, tmp_path / "cache") != before


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    text = tmp_path / "train.txt"
    text.write_text("some words\n" * 50)
    documents = Files.documents

    def growing(self, split):
        yield from documents(self, split)
        with open(text, "a") as file:
            file.write("and more\n")

    monkeypatch.setattr(Files, "documents", growing)
    with pytest.raises(UserError, match=r"train.txt changed while it was read"):
        tokens_of(text, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("tokens/*/seal.json"))
