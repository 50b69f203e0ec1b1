"""Tokens on disk: a memory-mapped array with document offsets, and a cache folder that is built once.

A store is a folder: `tokens.bin` (the smallest unsigned type that holds the vocabulary), `offsets.bin` (int64,
documents + 1), `meta.json`, and `digests.bin` (8 bytes a document: which texts occur elsewhere). `build_once` makes
any folder exactly once for any number of processes: it is filled under a temporary name, sealed with checksums,
flushed and renamed, all under a file lock; so a folder that has its final name is complete, and what a killed process
left behind is never read.
Shape letters: T tokens, V vocabulary.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1
DTYPES = ("uint8", "uint16", "uint32")
SEAL, CHECKED, DIGESTS = "seal.json", "checked.json", "digests.bin"
# Checksums are read at every start (3 GB/s); of more than this they are believed for a day while no file was touched.
REMEMBERED_BYTES, REMEMBERED_SECONDS = 256 << 20, 86_400
BATCH_CHARS = 4 << 20  # text handed to the tokenizer at once: enough for all threads, little memory
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


class TokenStore:
    """The tokens of one split. `tokens` is (T,) read-only and mapped, not loaded; `len` counts documents."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.meta: dict = json.loads((self.folder / "meta.json").read_text())
            if self.meta["format"] != FORMAT:
                raise ValueError(f"format {self.meta['format']}, and this version reads {FORMAT}")
            if self.meta["dtype"] not in DTYPES:
                raise ValueError(f"tokens of type {self.meta['dtype']}")
            self._expect("tokens.bin", self.meta["tokens"] * np.dtype(self.meta["dtype"]).itemsize)
            self._expect("offsets.bin", (self.meta["documents"] + 1) * 8)
            self.offsets = np.fromfile(self.folder / "offsets.bin", dtype=np.int64)
            if self.offsets[0] != 0 or self.offsets[-1] != self.meta["tokens"] or (np.diff(self.offsets) < 0).any():
                raise ValueError("offsets.bin does not cut the tokens into documents")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._damaged(" ".join(str(error).split())[:150]) from error
        if self.meta["tokens"]:
            self.tokens = np.memmap(self.folder / "tokens.bin", dtype=self.meta["dtype"], mode="r")
        else:
            self.tokens = np.empty(0, dtype=self.meta["dtype"])  # an empty file can't be mapped

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document, a view; its dtype is the store's unsigned one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the running text, across documents, a view."""
        return self.tokens[start:stop]

    def __reduce__(self) -> tuple:
        # A worker maps the file itself: nothing but the path travels.
        return TokenStore, (self.folder,)

    def _expect(self, name: str, size: int) -> None:
        if (found := (self.folder / name).stat().st_size) != size:
            raise ValueError(f"{name} holds {found:,} bytes instead of {size:,}")

    def _damaged(self, why: str) -> UserError:
        return UserError(f"the token store {self.folder} can't be used ({why}); delete that folder and start again")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds ids below `vocab_size`."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_store(folder: str | Path, documents: Iterable[np.ndarray], vocab_size: int, meta: dict | None = None) -> None:
    """Write a store from one id array a document.

    `meta` is read after the last document, so that whoever yields the documents can still count into it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(vocab_size)
    offsets = [0]
    # Plain write(), not ndarray.tofile: that one reports a full disk without an errno.
    with open(folder / "tokens.bin", "wb", buffering=1 << 20) as file:
        for ids in documents:
            file.write(np.ascontiguousarray(ids, dtype=dtype).data)
            offsets.append(offsets[-1] + len(ids))
    (folder / "offsets.bin").write_bytes(np.array(offsets, dtype=np.int64).tobytes())
    own = {"format": FORMAT, "dtype": dtype.name, "vocab_size": vocab_size}
    own |= {"documents": len(offsets) - 1, "tokens": offsets[-1]}
    (folder / "meta.json").write_text(json.dumps((meta or {}) | own, indent=1))


def write_texts(
    folder: str | Path,
    texts: Iterable[str],
    tokenizer: Tokenizer,
    meta: dict | None = None,
    first: int | None = None,
) -> None:
    """Tokenise documents into a store, counting what the metrics need; `first` is put before each document's tokens.

    Meta gets `tokenizer` (hash), `bytes` (of the UTF-8 text), `words` (between blanks, and one for every line end: the
    convention of the WikiText perplexities) and `unknown` (tokens that stand for something the vocabulary lacks).
    """
    counts = {"tokenizer": tokenizer.hash, "bytes": 0, "words": 0, "unknown": 0, **(meta or {})}
    digests = bytearray()

    def encoded() -> Iterator[np.ndarray]:
        for batch in in_batches(texts):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                counts["bytes"] += len(text) if text.isascii() else len(text.encode())
                counts["words"] += len(text.split()) + text.count("\n")
                digests.extend(hashlib.blake2b(text.strip().encode(), digest_size=8).digest())
                if tokenizer.unk_id is not None:
                    counts["unknown"] += int(np.count_nonzero(ids == tokenizer.unk_id))
                yield ids if first is None else np.concatenate([[first], ids])

    write_store(folder, encoded(), tokenizer.vocab_size, counts)
    (Path(folder) / DIGESTS).write_bytes(digests)


def overlap(store: TokenStore, other: TokenStore, texts: int = 1) -> int:
    """How many examples of `store` occur in `other`, word for word; an example is `texts` documents."""
    ours, theirs = (np.fromfile(s.folder / DIGESTS, dtype=np.uint64).reshape(-1, texts) for s in (store, other))
    # The texts of an example have an order: (a, b) is another one than (b, a).
    weights = np.array([2 * i + 1 for i in range(texts)], dtype=np.uint64)
    return int(np.isin((ours * weights).sum(1), (theirs * weights).sum(1)).sum())


def in_batches(texts: Iterable[str], chars: int = BATCH_CHARS) -> Iterator[list[str]]:
    """Texts in lists of about `chars` characters."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# -- a folder built once ------------------------------------------------------------------------------------------


def build_once(cache_dir: str | Path, key: str, build: Callable[[Path], None]) -> Path:
    """The folder `cache_dir/key`, filled by `build(folder)` if it is not there yet.

    Any number of processes may ask at once: one builds, the others wait and read. A folder whose files no longer
    match their checksums is built again. Raises UserError when the cache can't be written; what `build` raises passes
    through, and nothing stays behind.
    """
    cache = Path(cache_dir).expanduser()
    final = cache / key
    try:
        if final.is_dir() and (why := damage(final)) is None:
            return final
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock", waiting_for=final):
            if not final.is_dir() or (why := damage(final)) is not None:
                if final.is_dir():
                    log.warning("%s is damaged (%s) and is made anew", final, why)
                _build(final, build)
    except OSError as error:
        if (told := _cache_error(error, cache)) is not None:
            raise told from error
        raise
    return final


def _build(final: Path, build: Callable[[Path], None]) -> None:
    for left in final.parent.glob(f".{final.name}.tmp-*"):  # by a process that died: we hold its lock
        shutil.rmtree(left, ignore_errors=True)
    temporary = final.parent / f".{final.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    try:
        build(temporary)
        _seal(temporary)
        if final.is_dir():
            # Processes that have mapped the old files keep them; the name is free at once.
            shutil.rmtree(final)
        os.rename(temporary, final)
        _flush(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _seal(folder: Path) -> None:
    """Flush every file and note its size and checksum."""
    seal = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        seal[path.relative_to(folder).as_posix()] = [path.stat().st_size, _crc(path)]
        _flush(path)
    (folder / SEAL).write_text(json.dumps(seal, indent=1))
    _flush(folder / SEAL)
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        _flush(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder made by `build_once`, None when nothing is."""
    try:
        seal = _sealed(folder)
        there = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return " ".join(str(error).split())[:150]
    if missing := sorted(set(seal) - set(there)):
        return f"{missing[0]} is missing"
    if unknown := sorted(name for name in set(there) - set(seal) - {SEAL, CHECKED} if not name.startswith(".")):
        return f"{unknown[0]} has no checksum"
    for name, (size, _) in seal.items():
        if there[name].st_size != size:
            return f"{name} holds {there[name].st_size:,} bytes instead of {size:,}"
    state = {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in there.items() if name in seal}
    if sum(size for size, _ in seal.values()) > REMEMBERED_BYTES and _remembered(folder) == state:
        return None
    for name, (_, crc) in seal.items():
        if _crc(folder / name) != crc:
            return f"the checksum of {name} differs"
    if sum(size for size, _ in seal.values()) > REMEMBERED_BYTES:
        _remember(folder, state)
    return None


def _sealed(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and checksum by name."""
    return {name: (int(size), int(crc)) for name, (size, crc) in json.loads((folder / SEAL).read_text()).items()}


def _remembered(folder: Path) -> dict[str, list[int]] | None:
    """Size, times and inode of the files when their checksums were last right, if that is not long ago."""
    try:
        fresh = 0 <= time.time() - (folder / CHECKED).stat().st_mtime < REMEMBERED_SECONDS
        return json.loads((folder / CHECKED).read_text()) if fresh else None
    except (OSError, ValueError, RecursionError):
        return None


def _remember(folder: Path, state: dict[str, list[int]]) -> None:
    temporary = folder / f".{CHECKED}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(state))
        os.replace(temporary, folder / CHECKED)
    except OSError:  # a cache that others own, or a full disk: then it is checked again next time
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _locked:
    """The lock file, with a line to the log when somebody else holds it."""

    def __init__(self, path: Path, waiting_for: Path) -> None:
        self.lock, self.waiting_for = FileLock(str(path)), waiting_for

    def __enter__(self) -> None:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that makes %s", self.waiting_for)
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _cache_error(error: OSError, cache: Path) -> UserError | None:
    """What to tell a person when the cache folder is what failed."""
    if error.errno in NO_ROOM:
        free = f"{shutil.disk_usage(cache).free >> 20:,} MiB free" if cache.is_dir() else "no room"
        return UserError(f"the cache folder {cache} is full ({error.strerror}, {free}); give another: cache_dir=PATH")
    inside = error.filename is not None and str(error.filename).startswith(str(cache))
    if (error.errno in NO_RIGHT and inside) or (error.errno in (*NO_RIGHT, errno.ENOENT) and not cache.is_dir()):
        why = error.strerror
        return UserError(f"the cache folder {cache} can't be written ({why}); give another: cache_dir=PATH")
    return None
