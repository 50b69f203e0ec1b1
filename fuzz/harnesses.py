"""Every reader of foreign bytes as a function of bytes: what a fuzzer calls, and what the tests call again.

A harness writes the bytes where a person's file would lie, reads them as lit_tfm does, and lets only `UserError` pass.
Whatever else comes out is a finding: another exception, text that can't be stored, a file the reader wrote, and (told
by the fuzzer) a hang or memory without bound. Needs no atheris: `fuzz/run.py` is what does.
"""

import csv
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from lit_tfm import config, trained
from lit_tfm.callbacks import checkpoint_files
from lit_tfm.data import classification, store
from lit_tfm.data.sources import documents, reading
from lit_tfm.data.sources.files import Files
from lit_tfm.data.tokenizers import BPE, Byte, Char, Tokenizer, Unigram, WordPiece
from lit_tfm.errors import UserError
from lit_tfm.reports import columns, report, tables, texts
from lit_tfm.reports.reading import read_run
from lit_tfm.runs import RunFolder
from lit_tfm.search import settings

CUT = b"\n%%\n"  # between the files of one input


class Finding(Exception):
    """A reader accepted what it should not have, or wrote where it should only read."""


@dataclass(frozen=True)
class Harness:
    """`call(data, folder)` reads `data` by way of files in an empty folder; `seeds` are whole files to begin with."""

    call: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()  # that it may put in

    def attempt(self, data: bytes) -> str:
        """One input. Returns what the reader said ("" where it took the file); raises what it must not raise."""
        with _empty_folder() as folder:
            try:
                self.call(data, folder)
                said = ""
            except UserError as error:
                said = str(error)
        if "\n" in " ".join(said.split()):
            raise Finding("more than one line")
        return said


@contextmanager
def _empty_folder() -> Iterator[Path]:
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="lit_tfm_fuzz_", dir=shared if shared.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _reading_only(folder: Path) -> Iterator[None]:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    yield
    if before != {path: path.stat().st_mtime_ns for path in folder.rglob("*")}:
        raise Finding("a reader wrote into the folder it reads")


def _storable(text: str) -> None:
    """Text that UTF-8 can't hold ends in a traceback later, far from its place."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Finding(f"text that can't be stored was accepted: {error}") from error


# -- text, csv, jsonl ------------------------------------------------------------------------------------------------


def text(data: bytes, folder: Path) -> None:
    """First byte: strict or replace, and the size of blocks."""
    how, data = data[:1] or b"\0", data[1:]
    errors = "replace" if how[0] & 1 else "strict"
    path = folder / ("a.txt.gz" if how[0] & 2 else "a.txt")
    path.write_bytes(data)
    with _block(1 << (how[0] >> 4)), _reading_only(folder):
        whole = "".join(reading.read_blocks(path, errors))
        _storable(whole)
        if how[0] & 3 == 0 and whole != data.decode().removeprefix("\ufeff").replace("\r\n", "\n"):
            raise Finding("another text than the file's")
        for way in documents.WAYS:
            found = list(documents.split_documents(reading.read_blocks(path, errors), way))
            if way in ("file", "wikitext") and "".join(found) != whole:
                raise Finding(f"documents ({way}) that are not the text")
            if way in ("line", "paragraph") and not all(part.strip() for part in found):
                raise Finding(f"an empty document ({way})")


@contextmanager
def _block(size: int) -> Iterator[None]:
    usual, reading.BLOCK = reading.BLOCK, size
    try:
        yield
    finally:
        reading.BLOCK = usual


_COLUMNS = (
    {},
    {"text": 0, "label": 1},
    {"label": ["label", "second"]},
    {"label_separator": "|"},
    {"labels": ["a", "b"]},
    {"labels": ["a", "b", "c"], "label_offset": 1},
    {"text": ["text", "second"], "label": None},
    {"text_b": "second"},
)


def _rows(path: Path, how: int, **options: object) -> None:
    errors = "replace" if how & 1 else "strict"
    with _block(1 << (how >> 4)), _reading_only(path.parent):
        source = Files(str(path), errors=errors, **_COLUMNS[how >> 1 & 7], **options)
        rows = list(source.rows("train"))
        for row in rows:
            labels = row["label"] if isinstance(row["label"], list) else [row["label"]]
            for part in (row["text"], row["text_b"], *labels):
                _storable(part or "")
        names = {name for row in rows for name in (row["label"] if isinstance(row["label"], list) else [row["label"]])}
        classification.in_order(name for name in names if name is not None)
        list(source.documents("train"))


def table(data: bytes, folder: Path) -> None:
    """First byte: which options and size of blocks; second: csv or tsv, with or without a header."""
    how, kind, data = (data + b"\0\0")[0], (data + b"\0\0")[1], data[2:]
    path = folder / ("a.tsv" if kind & 1 else "a.csv")
    path.write_bytes(data)
    header = (None, True, False)[(kind >> 1) % 3]
    _rows(path, how, header=header)
    if not kind & 1 and not how & 1:  # as the library reads the whole text at once
        whole = data.decode().removeprefix("\ufeff").replace("\r\n", "\n")
        wanted = [row for row in csv.reader(io.StringIO(whole, newline=""), strict=True) if row]
        given = list(reading.read_table(path, "csv", header=False))
        if [list(row.values()) for _, row in given] != wanted:
            raise Finding("other rows than the csv library's")


def jsonl(data: bytes, folder: Path) -> None:
    """First byte: which options and size of blocks."""
    how, data = (data or b"\0")[0], data[1:]
    path = folder / "a.jsonl"
    path.write_bytes(data)
    _rows(path, how)


_TEXTS = [b"\0one\ntwo\n", b"\1caf\xe9\0\n", b"\0\xef\xbb\xbfx\r\n\r\ny\r\n", b"\x40 \n = A = \n \n x\n = B = \n \n"]
_TEXTS += ["\0e\u0301 \U0001f469\u200d\U0001f469 \u05e9\u05dc\u05d5\u05dd \u2028\x0c\x85\n".encode(), b"\0\xff\xfea\0"]
_TABLES = [
    b"\0\0text,label\na,b\nc,d\n",
    b'\0\0text,label\n"a ""q"",\nb",x',
    b"\2\4a,b\r\nc,d\r\n",
    b"\0\1text\tlabel\nx\ty",
]
_TABLES += [
    b"\4\0text,label,second\na,1,0\n",
    b"\6\0text,label\na,x|y\n",
    b"\x0a\0text,label\na,1\n",
    b"\0\0text,text\na,b\n",
]
_LINES = [b'\0{"text": "a", "label": 1}\n{"text": "b", "label": true}\n', b'\0{"text": ["a", "b"], "label": ["x"]}\n']
_LINES += [b'\0{"text": "\\ud800", "label": 1.0}\n', b'\0{"text": "a", "label": null}\r\n\r\n{"text": {}}\n']


# -- caches ----------------------------------------------------------------------------------------------------------


def _store_files() -> dict[str, bytes]:
    with _empty_folder() as folder:
        store.write_store(folder, [np.arange(5), np.arange(0), np.arange(40)], 200, {"pair": False})
        classification.write_labels(folder, ["x", "y", "x"])
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


_STORE = _store_files()


def cache(data: bytes, folder: Path) -> None:
    """First byte: which file of a store the rest becomes, and whether its seal is made to fit."""
    how, data = (data or b"\0")[0], data[1:]
    for name, content in _STORE.items():
        (folder / name).write_bytes(content)
    names = [*_STORE, store.SEAL]
    store._seal(folder)
    whole = {name: (folder / name).read_bytes() for name in names}
    name = names[how % len(names)]
    (folder / name).write_bytes(data)
    if how & 0x80 and name != store.SEAL:
        (folder / store.SEAL).unlink()
        store._seal(folder)
    with _reading_only(folder):
        told = store.damage(folder)
        if told is None and not how & 0x80 and name != store.SEAL and whole[name] != data:
            raise Finding("a changed file was not noticed")
        if told is not None and "\n" in told:
            raise Finding("more than one line")
        opened = store.TokenStore(folder)
        if sum(len(opened.document(i)) for i in range(len(opened))) != len(opened.tokens):
            raise Finding("documents that are not the tokens")
        classification.read_labels(folder)


def _store_seeds() -> list[bytes]:
    with _empty_folder() as folder:
        for name, content in _STORE.items():
            (folder / name).write_bytes(content)
        store._seal(folder)
        files = [*_STORE.values(), (folder / store.SEAL).read_bytes()]
    return [bytes([number | sealed]) + content for number, content in enumerate(files) for sealed in (0, 0x80)]


# -- tokenizer.json ----------------------------------------------------------------------------------------------------


def tokenizer(data: bytes, folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(data)
    with _reading_only(folder):
        made = Tokenizer.from_file(path)
        ids = made.encode("one two\n\u00e9 [MASK]\U0001f469")
        if len(ids) and (ids.min() < 0 or ids.max() >= made.vocab_size):
            raise Finding("ids beyond the vocabulary")
        made.decode(ids)
        made.hash  # noqa: B018


def _tokenizer_seeds() -> list[bytes]:
    seen = ["one two three two one\n", "the cat sat on the mat"]
    recipes = (WordPiece, BPE, Unigram, Byte, Char)
    made = [recipe(vocab_size=300 if recipe in (BPE, Byte) else 40).train(seen) for recipe in recipes]
    return [m._inner.to_str().encode() for m in made]


# -- checkpoints -----------------------------------------------------------------------------------------------------


def _archive() -> dict[str, bytes]:
    """The records of a small checkpoint."""
    state = {"a": torch.zeros(2, 3), "b": torch.ones(3)}
    saved = {"state_dict": state, "global_step": 3, "loops": {}, "lit_tfm": {"tokenizer": "x"}}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_CHECKPOINT = _archive()
_PICKLE = next(name for name in _CHECKPOINT if name.endswith("data.pkl"))


def _zipped(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in _CHECKPOINT.items():
            archive.writestr(name, pickled if name == _PICKLE else content)
    return buffer.getvalue()


def checkpoint(data: bytes, folder: Path) -> None:
    """First byte: the rest is the file itself, the pickle inside a whole archive, or a .safetensors."""
    how, data = (data or b"\0")[0] % 3, data[1:]
    path = folder / (checkpoint_files.LAST if how < 2 else "best.safetensors")
    path.write_bytes(_zipped(data) if how == 1 else data)
    with _reading_only(folder):
        if how < 2:
            told = checkpoint_files.check(path)
            if told is not None and ("\n" in told or not told):
                raise Finding("not one line")
            with suppress(UserError):
                checkpoint_files.newest(folder)
        trained.weights(path)


def _checkpoint_seeds() -> list[bytes]:
    from safetensors.torch import save

    whole = _CHECKPOINT[_PICKLE]
    return [b"\0" + _zipped(whole), b"\1" + whole, b"\2" + save({"a": torch.zeros(2), "b": torch.ones(1)})]


# -- run folders -------------------------------------------------------------------------------------------------------

_RUN_FILES = ("config.yaml", "summary.json", "metrics.csv", "data.json", "trial.json")


def run_folder(data: bytes, folder: Path) -> None:
    """The files of a run, with CUT between them; an empty one is not there."""
    run = folder / "run"
    run.mkdir()
    for name, content in zip(_RUN_FILES, data.split(CUT), strict=False):
        if content:
            (run / name).write_bytes(content)
    with _reading_only(folder):
        told = read_run(run)
        told.points  # noqa: B018
        result = tables.compare([run])
        found = columns.columns(result, None, None, columns.check_which(False, False))
        records = tables.records(result)
        texts.markdown(found)
        texts.as_csv(records)
        texts.as_json(records)
    report.write(str(folder / "report.html"), result, found, None, [], "compare")
    with _reading_only(folder):
        trained.config_of(RunFolder.open(run))


def _run_seeds() -> list[bytes]:
    target = {"_target_": "lit_tfm.x.Y", "a": 1}
    cfg = {"seed": 1, "choices": {"model": "gpt"}} | dict.fromkeys(
        ("model", "task", "data", "optimizer", "schedule"), target
    )
    summary = {"status": "finished", "steps": 3, "tokens": 9, "seconds": 0.5, "parameters": 4, "flops_per_token": 2.0}
    summary |= {
        "metrics": {"val/loss": 1.5},
        "best": {"val/loss": 1.25, "step": 2},
        "monitor": "val/loss",
        "mode": "min",
    }
    points = "step,seconds,tokens,name,value\n1,0.1,3,train/loss,2.5\n2,0.2,6,val/loss,nan\n3,0.3,9,speed/tflops,1\n"
    record = {"name": "text", "hash": "ab", "splits": {"train": {"tokens": 5}}}
    trial = {"state": "pruned", "overrides": ["seed=1"], "params": {"a": 1}, "reason": "slow", "number": 3}
    config_text = yaml.safe_dump(cfg)
    parts = [config_text, json.dumps(summary), points, json.dumps(record), json.dumps(trial)]
    encoded = [part.encode() for part in parts]
    return [
        CUT.join(encoded),
        CUT.join([encoded[0], b"", encoded[2], encoded[3]]),
        CUT.join([b"", b"", b"", b"", encoded[4]]),
    ]


# -- experiment and sweep yamls ----------------------------------------------------------------------------------------


def experiment_yaml(data: bytes, folder: Path) -> None:
    """First byte even: an experiment or best.yaml, composed as the command line does; odd: a sweep's."""
    how, data = (data or b"\0")[0], data[1:]
    path = folder / "best.yaml"
    path.write_bytes(data)
    with _reading_only(folder):
        if how & 1:
            settings.read([f"sweep={path}"])
        else:
            config.compose([f"experiment={path}", "data.path=x"])
    config._files.clear()


def _yaml_seeds() -> list[bytes]:
    found = [b"\1" + path.read_bytes() for path in sorted((config.ROOT / "sweeps").glob("*.yaml"))[:3]]
    found += [b"\0" + path.read_bytes() for path in sorted((config.CONF / "experiment").glob("*.yaml"))[:2]]
    best = (
        "# @package _global_\ndefaults:\n  - char_gpt\n  - override /optimizer: adamw\nmodel:\n  d_model: 64\nseed: 2\n"
    )
    return [
        *found,
        b"\0" + best.encode(),
        b"\0seed: ${name}\nmodel: {d_model: 1}\n",
        b"\1experiment: char_gpt\nspace: {seed: 1}\n",
    ]


HARNESSES = {
    "text": Harness(text, lambda: _TEXTS, (b"\r\n", b"\xef\xbb\xbf", b"\n = A = \n", b"\x1f\x8b")),
    "csv": Harness(table, lambda: _TABLES, (b'"', b'""', b"text", b"label", b"\r\n", b"second")),
    "jsonl": Harness(
        jsonl, lambda: _LINES, (b'{"text": "', b'"label": ', b"\\ud800", b"NaN", b"1e400", b"[[[[", b"null")
    ),
    "cache": Harness(cache, _store_seeds, (b'"tokens": ', b'"dtype": "object"', b'"format": 1', b"-1")),
    "tokenizer": Harness(
        tokenizer,
        _tokenizer_seeds,
        (b'"vocab"', b'"type":', b'"BPE"', b'"WordPiece"', b'"Unigram"', b'"WordLevel"', b'"ByteLevel"', b"4000000000"),
    ),
    "checkpoint": Harness(
        checkpoint,
        _checkpoint_seeds,
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n", b"PK\x03\x04", b"ctorch\nFloatStorage\n", b'"F32"'),
    ),
    "run_folder": Harness(run_folder, _run_seeds, (CUT, b'"metrics": {', b"nan", b"1e999", b"*a", b"&a")),
    "yaml": Harness(
        experiment_yaml,
        _yaml_seeds,
        (b"defaults:\n", b"override /", b"${", b"oc.env:", b"_target_: ", b"space:\n", b"low: ", b"???", b"choices: ["),
    ),
}
