"""The token store and the cache that is built once: real processes, real damage, a really full disk."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.data import store
from lit_tfm.data.store import TokenStore, build_once, damage, in_batches, overlap, write_store, write_texts
from lit_tfm.data.tokenizers import Byte, WordPiece
from lit_tfm.errors import UserError

ROOT = Path(__file__).parents[2]
DOCUMENTS = [np.arange(5), np.arange(0), np.arange(300) % 200]


@given(
    lengths=st.lists(st.integers(0, 50), max_size=20),
    vocab_size=st.sampled_from([2, 256, 257, 65536, 65537, 300_000]),
)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, lengths, vocab_size):
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, vocab_size, n).astype(np.int32) for n in lengths]
    write_store(folder, iter(documents), vocab_size, {"colour": "blue"})
    store = TokenStore(folder)
    assert len(store) == store.meta["documents"] == len(documents)
    assert store.meta["tokens"] == sum(lengths)
    assert store.meta["colour"] == "blue"
    assert store.tokens.dtype.itemsize == (1 if vocab_size <= 256 else 2 if vocab_size <= 65536 else 4)
    for i, document in enumerate(documents):
        np.testing.assert_array_equal(store.document(i), document)
    whole = np.concatenate([*documents, np.empty(0, np.int32)])
    np.testing.assert_array_equal(store.slice(0, len(whole)), whole)
    np.testing.assert_array_equal(store.slice(3, 7), whole[3:7])
    with pytest.raises(IndexError):
        store.document(len(documents))


def test_tokens_are_mapped_read_only_and_a_pickle_is_a_path(tmp_path):
    write_store(tmp_path, [np.zeros(100_000, dtype=np.int32)], 8)
    store = TokenStore(tmp_path)
    assert isinstance(store.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.tokens[0] = 1
    assert len(pickle.dumps(store)) < 500
    assert pickle.loads(pickle.dumps(store)).meta == store.meta


def test_counts_of_a_text(tmp_path):
    texts = [" \n = Ä Title = \n \n one two \n", "", "xyz unknown\n"]
    tokenizer = WordPiece(vocab_size=60).train(["one two title", "ä"])
    write_texts(tmp_path, iter(texts), tokenizer, {"split": "train"})
    meta = TokenStore(tmp_path).meta
    assert meta["tokenizer"] == tokenizer.hash
    assert meta["split"] == "train"
    assert meta["bytes"] == sum(len(text.encode()) for text in texts)
    assert meta["words"] == 6 + 4 + 2 + 1  # words, and line ends as words
    # "=" is not in the vocabulary, nor are "xyz" and "unknown".
    assert meta["unknown"] == 4


def test_wikitext_words_are_those_of_the_literature(shared_data, tmp_path):
    """217,646 and 245,569: what published word perplexities of WikiText-2 divide by."""
    for name, words in (("valid", 217_646), ("test", 245_569)):
        text = (shared_data / f"wikitext-2/{name}.txt").read_text()
        write_texts(tmp_path / name, [text], Byte().train(()))
        assert TokenStore(tmp_path / name).meta["words"] == words


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(1, 50))
@settings(deadline=None)
def test_batches_lose_nothing(texts, chars):
    batches = list(in_batches(iter(texts), chars))
    assert [text for batch in batches for text in batch] == texts
    assert all(batches)


# -- built once ---------------------------------------------------------------------------------------------------

BUILDER = """
import sys, time, os
from pathlib import Path
import numpy as np
from lit_tfm.data import store
from lit_tfm.data.store import TokenStore, build_once, write_store
cache, log, start = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def build(folder):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.5)
    write_store(folder, [np.arange(1000), np.arange(7)], 5000)
time.sleep(max(0, start - time.time()))
store = TokenStore(build_once(cache, "key", build))
print(int(store.tokens.sum()), len(store), flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("processes", [2, 8])
def test_processes_at_once_build_once_and_read_the_same(tmp_path, processes):
    begin = time.time() + 1.0
    running = [start(BUILDER, tmp_path / "cache", tmp_path / "log", begin) for _ in range(processes)]
    output = [process.communicate(timeout=60) for process in running]
    assert [err for _, err in output] == [""] * processes
    assert {out for out, _ in output} == {f"{499500 + 21} 2\n"}
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["key", "key.lock"]


KILLED = """
import sys, time
from pathlib import Path
from lit_tfm.data.store import build_once
def build(folder):
    (folder / "half").write_text("half")
    print("building", flush=True)
    time.sleep(60)
build_once(sys.argv[1], "key", build)
"""


def test_a_killed_build_leaves_nothing_that_is_used(tmp_path):
    process = start(KILLED, tmp_path / "cache")
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith(".key.tmp-")]
    assert len(left) == 1
    folder = build_once(tmp_path / "cache", "key", lambda folder: (folder / "whole").write_text("whole"))
    assert sorted(p.name for p in folder.iterdir()) == ["seal.json", "whole"]
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["key", "key.lock"]


def test_a_failed_build_leaves_nothing_and_its_error_passes(tmp_path):
    def build(folder):
        (folder / "half").write_text("half")
        raise UserError("no such column")

    with pytest.raises(UserError, match="no such column"):
        build_once(tmp_path, "key", build)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def _write(folder: Path) -> None:
    write_store(folder / "train", DOCUMENTS, 200)
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("name", ["train/tokens.bin", "train/offsets.bin", "train/meta.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
def test_damage_is_found_and_mended(tmp_path, caplog, name, how):
    folder = build_once(tmp_path, "key", _write)
    path = folder / name
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[:-1])
    elif how == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    assert damage(folder) is not None
    again = build_once(tmp_path, "key", _write)
    assert again == folder
    assert damage(folder) is None
    np.testing.assert_array_equal(TokenStore(folder / "train").document(2), DOCUMENTS[2])
    assert "is damaged" in caplog.text


def test_an_intact_folder_is_not_built_again(tmp_path):
    build_once(tmp_path, "key", _write)
    build_once(tmp_path, "key", lambda folder: pytest.fail("built twice"))


def test_a_store_cut_short_is_refused_with_the_reason(tmp_path):
    write_store(tmp_path, DOCUMENTS, 200)
    with open(tmp_path / "tokens.bin", "ab") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"tokens.bin holds 100 bytes instead of 305.*delete that folder"):
        TokenStore(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(UserError, match="can't be used"):
        TokenStore(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told(tmp_path):
    """/dev/full refuses every write as a full disk does."""

    def build(folder):
        (folder / "tokens.bin").symlink_to("/dev/full")
        write_store(folder, [np.zeros(1 << 22, dtype=np.int32)], 8)

    with pytest.raises(UserError, match=r"is full \(No space left on device, [\d,]+ MiB free\).*cache_dir=PATH"):
        build_once(tmp_path, "key", build)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


LIMITED = """
import resource, sys
import numpy as np
from lit_tfm.data.store import build_once, write_store
from lit_tfm.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    build_once(sys.argv[1], "key", lambda folder: write_store(folder, [np.zeros(5000)], 8))
except UserError as error:
    print(error)
"""


def test_a_file_size_limit_is_told(tmp_path):
    process = start(LIMITED, tmp_path / "cache")
    out, err = process.communicate(timeout=30)
    assert (err, out.count("\n")) == ("", 1)
    assert "is full (File too large" in out


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for cache in (tmp_path / "file", tmp_path / "file" / "cache", Path("/proc/lit_tfm")):
        with pytest.raises(UserError, match=r"can't be written \(.+\); give another: cache_dir=PATH"):
            build_once(cache, "key", _write)


def test_errors_about_other_places_pass_as_they_are(tmp_path):
    def build(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/somewhere/else")

    with pytest.raises(PermissionError):
        build_once(tmp_path, "key", build)


def test_meta_is_plain_json(tmp_path):
    write_store(tmp_path, DOCUMENTS, 200, {"a": 1})
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta == {"a": 1, "format": 1, "dtype": "uint8", "vocab_size": 200, "documents": 3, "tokens": 305}


def test_examples_that_are_training_texts_as_well_are_counted(tmp_path):
    tokenizer = Byte().train(())
    folders = {}
    for name, texts in {"train": ["a b", "c", "d", "c"], "test": ["c", " a b\n", "x", "c", "C"]}.items():
        write_texts(tmp_path / name, texts, tokenizer)
        folders[name] = TokenStore(tmp_path / name)
    assert overlap(folders["test"], folders["train"]) == 3  # blanks around a text make no other text
    for name, pairs in {"trained": [("a", "b"), ("c", "d")], "tested": [("a", "b"), ("b", "a"), ("c", "b")]}.items():
        write_texts(tmp_path / name, [text for pair in pairs for text in pair], tokenizer)
    assert overlap(TokenStore(tmp_path / "tested"), TokenStore(tmp_path / "trained"), texts=2) == 1


# -- every bit, every byte ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 17])
def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path, step):
    """Every bit of every file, the seal's own included: noticed, or (a blank of the seal) without any effect."""
    folder = build_once(tmp_path, "key", lambda folder: write_store(folder, [np.arange(40), np.arange(3)], 200))
    seal = json.loads((folder / "seal.json").read_text())
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for bit in range(0, 8 * len(content), step):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert damage(folder) is not None or (path.name == "seal.json" and json.loads(flipped) == seal), (path, bit)
        for size in range(0, len(content), step):
            path.write_bytes(content[:size])
            assert damage(folder) is not None, (path, size)
        path.write_bytes(content)
        assert damage(folder) is None


def test_a_file_without_a_checksum_is_not_trusted(tmp_path):
    folder = build_once(tmp_path, "key", _write)
    seal = json.loads((folder / "seal.json").read_text())
    del seal["train/tokens.bin"]
    (folder / "seal.json").write_text(json.dumps(seal))
    assert damage(folder) == "train/tokens.bin has no checksum"


@pytest.mark.parametrize("touched", [False, True], ids=["rotten", "written"])
def test_a_flipped_bit_in_large_files_is_noticed(tmp_path, monkeypatch, touched):
    """Above REMEMBERED_BYTES checksums are believed for a day, unless a file was touched since."""
    monkeypatch.setattr(store, "REMEMBERED_BYTES", 100)
    reads = []
    crc = store._crc
    monkeypatch.setattr(store, "_crc", lambda path: reads.append(path.name) or crc(path))
    folder = build_once(tmp_path, "key", _write)
    reads.clear()
    assert damage(folder) is None
    assert sorted(reads) == ["meta.json", "offsets.bin", "tokenizer.json", "tokens.bin"]
    assert damage(folder) is None
    assert len(reads) == 4, "the second start believes the first"
    tokens = folder / "train" / "tokens.bin"
    content = bytearray(tokens.read_bytes())
    content[200] ^= 4
    tokens.write_bytes(content)
    if not touched:  # the disk itself: no time changes, and the note of the check is a day old
        note = folder / "checked.json"
        noted = json.loads(note.read_text())
        stat = tokens.stat()
        noted["train/tokens.bin"] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        note.write_text(json.dumps(noted))
        assert damage(folder) is None
        os.utime(note, (time.time() - 90_000,) * 2)
    assert damage(folder) == "the checksum of train/tokens.bin differs"
    build_once(tmp_path, "key", _write)
    np.testing.assert_array_equal(TokenStore(folder / "train").document(2), DOCUMENTS[2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format 2, and this version reads 1"),
        ({"dtype": "object"}, "tokens of type object"),
        ({"tokens": -305}, "instead of -305"),
        ({"documents": None}, "can't be used"),
        ({"offsets": [0, 9, 5, 305]}, "does not cut the tokens into documents"),
        ({"offsets": [0, 5, 5, 304]}, "does not cut the tokens into documents"),
    ],
)
def test_a_store_that_contradicts_itself_is_refused(tmp_path, changes, said):
    write_store(tmp_path, DOCUMENTS, 200)
    meta = json.loads((tmp_path / "meta.json").read_text())
    if "offsets" in changes:
        np.array(changes.pop("offsets")).tofile(tmp_path / "offsets.bin")
    (tmp_path / "meta.json").write_text(json.dumps(meta | changes))
    with pytest.raises(UserError, match=said):
        TokenStore(tmp_path)
