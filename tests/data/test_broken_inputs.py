"""Broken data through the command itself: status 2, one line that names file and place, nothing half-written.

Faults of configs, folders, checkpoints and processes have a table of their own (tests/test_faults.py).
"""

import gzip
import json
import logging
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_tfm.data.store import damage
from lit_tfm.train import main

STEP = ["trainer.accelerator=cpu", "trainer.max_steps=1", "budget=null", "tokenizer.vocab_size=300", "model.n_layers=1"]
TEXT = ["model=bert_tiny", "task=masked_lm", "data=text", "data.block_size=16", *STEP]
ROWS = ["model=bert_tiny", "task=classification", "data=csv", *STEP]
GOOD = "good film,a\nbad film,b\n" * 15
LINES = '{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n' * 15


@pytest.fixture
def logging_as_it_was():
    """Hydra switches off every logger that exists when a command starts: those of other tests."""
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before, handlers, level = [logger.disabled for logger in loggers], logging.root.handlers[:], logging.root.level
    yield
    for logger, disabled in zip(loggers, before, strict=True):
        logger.disabled = disabled
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd, logging_as_it_was):
    """Types `python -m lit_tfm.train ...`, expects a refusal; returns what was told."""

    def attempt(*words: str) -> str:
        typed = [*words, f"cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'run'}"]
        monkeypatch.setattr(sys, "argv", ["lit_tfm.train", *typed])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert ended.value.code == 2
        [line] = err.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in out
        assert not (tmp_path / "run").exists()
        for kind in (tmp_path / "cache").glob("*"):
            for entry in (path for path in kind.iterdir() if path.is_dir()):
                assert damage(entry) is None, "what has a name is whole"
        return line

    return attempt


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Of each: its name in the table of docs/reliability.md, the file, its bytes, and what is told.
TEXTS = [
    ("empty file", "a.txt", b"", "a.txt: the file is empty"),
    ("blanks only", "a.txt", b" \n\n \n", "empty (blanks only)"),
    ("NUL byte", "a.txt", b"one\ntwo\0three\n", "a NUL at byte 7, line 2"),
    ("not UTF-8", "a.txt", b"one\ncaf\xe9\n", "0xe9 at byte 7, line 2"),
    ("UTF-8 cut in a character", "a.txt", "one caf\u00e9".encode()[:-1], "not UTF-8 (0xc3 at byte 7, line 1)"),
    ("surrogates in UTF-8", "a.txt", b"one\n\xed\xa0\x80\n", "0xed at byte 4, line 2"),
    ("UTF-16", "a.txt", "text".encode("utf-16"), "UTF-16 text; make it UTF-8: iconv"),
    ("UTF-16 without a mark", "a.txt", "text".encode("utf-16-le"), "a NUL at byte 1, line 1"),
    ("gzip named .txt", "a.txt", gzip.compress(b"text", mtime=0), "a gzip file by its content; name it *.gz"),
    ("text named .gz", "a.txt.gz", b"text", "not a whole gzip file"),
    ("gzip cut short", "a.txt.gz", gzip.compress(os.urandom(3000), mtime=0)[:-20], "not a whole gzip file"),
    ("gzip with a wrong checksum", "a.txt.gz", gzip.compress(b"text" * 90)[:-8] + bytes(8), "not a whole gzip file"),
    ("archive", "a.zip", b"PK\3\4", ".zip archives are not read"),
    ("parquet named .txt", "a.txt", b"PAR1\1\2", "a parquet file by its content"),
    ("folder without text", "only/a.png", b"x", "no text"),
    ("too little text to hold any out", "a.txt", b"x", "leaves nothing to train on"),
]
TABLES = [
    ("csv: empty", "a.csv", "", [], "the file is empty"),
    ("csv: header only", "a.csv", "text,label\n", [], "a header and no rows"),
    ("csv: too few fields", "a.csv", f"text,label\n{GOOD}one\n", [], "line 32 has 1 fields, the first has 2"),
    ("csv: too many fields", "a.csv", 'text,label\n"two\nlines",a\nx,y,z\n', [], "line 4 has 3 fields"),
    ("csv: quote never closed", "a.csv", f'text,label\n{GOOD}"x,a\n{GOOD}', [], "line 32: unexpected end of data"),
    ("csv: text behind a quote", "a.csv", 'text,label\n"x" y,a\n', [], "line 2: ',' expected after '\"'"),
    ("csv: no such column", "a.csv", f"txt,label\n{GOOD}", [], "did you mean 'txt'?"),
    ("csv: no header", "a.csv", GOOD, [], "for no header, name columns by position"),
    ("csv: column twice", "a.csv", "text,label,text\na,b,c\n", [], "column 'text' stands there twice"),
    ("csv: one class only", "a.csv", "text,label\n" + "x y,a\n" * 20, [], "one class only (a)"),
    ("csv: no label in a row", "a.csv", f"text,label\n{GOOD}x,\n", ["data.holdout.validation=2"], "has no label"),
    ("csv: label not of the list", "a.csv", f"text,label\n{GOOD}x,c\n", ["data.labels=[a,b]"], "line 32: label 'c'"),
    ("csv: label number out of range", "a.csv", "text,label\nx,7\n", ["data.labels=[a,b]"], "stand for 0 to 1"),
    ("tsv: not UTF-8", "a.tsv", b"text\tlabel\nx\ta\nx\xff\tb\n", [], "0xff at byte 16, line 3"),
    ("jsonl: broken line", "a.jsonl", f'{LINES}{{"text": \n', [], "line 31 is not JSON"),
    ("jsonl: a list", "a.jsonl", f"{LINES}[1]\n", [], "line 31 holds a list; one JSON object a line"),
    ("jsonl: a json array", "a.json", "[\n" + LINES, [], "line 1 is not JSON"),
    ("jsonl: nested text", "a.jsonl", '{"text": {"a": 1}, "label": 1}\n', [], "line 1: column 'text' holds a dict"),
    ("jsonl: nested label", "a.jsonl", '{"text": "x", "label": {"a": 1}}\n', [], "line 1: a label is a dict"),
    (
        "jsonl: half a character",
        "a.jsonl",
        LINES + '{"text": "\\ud83d", "label": 1}\n',
        [],
        "line 31 holds half a char",
    ),
    ("jsonl: nested too deep", "a.jsonl", LINES + "[" * 100_000, [], "line 31 is not JSON"),
    ("jsonl: key missing in one line", "a.jsonl", f'{LINES}{{"label": 1}}\n', [], "line 31: no column 'text'"),
    ("parquet: cut short", "a.parquet", b"PAR1 and nothing", [], "not a whole parquet file"),
    ("text without labels", "a.txt", "words\n" * 90, [], "needs rows with labels"),
]


@pytest.mark.parametrize(("name", "content", "said"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_text(refused, tmp_path, name, content, said):
    path = write(tmp_path / "in" / name, content)
    told = refused(*TEXT, f"data.path={path.parent if 'only' in name else path}")
    assert said in told
    assert path.name in told or path.parent.name in told
    assert not list((tmp_path / "cache").glob("*/*/seal.json")), "nothing came to be stored"


@pytest.mark.parametrize(
    ("name", "content", "options", "said"), [case[1:] for case in TABLES], ids=[case[0] for case in TABLES]
)
def test_table(refused, tmp_path, name, content, options, said):
    path = write(tmp_path / "in" / name, content)
    told = refused(*ROWS, f"data.path={path}", *options)
    assert said in told
    assert path.name in told


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_label_that_training_lacks(refused, tmp_path, split):
    for name in {"train", "valid", split}:
        write(tmp_path / "in" / f"{name}.csv", "text,label\n" + GOOD + ("x,bb\n" if name == split else ""))
    told = refused(*ROWS, f"data.path={tmp_path / 'in'}")
    assert f"the {'validation' if split == 'valid' else split} split of" in told
    assert "has the label 'bb', which the training split lacks" in told


def test_an_empty_validation_table(refused, tmp_path):
    write(tmp_path / "in" / "train.csv", "text,label\n" + GOOD)
    write(tmp_path / "in" / "valid.csv", "text,label\n")
    assert "valid.csv: the file has a header and no rows" in refused(*ROWS, f"data.path={tmp_path / 'in'}")


def test_parquet_without_rows(refused, tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": [], "label": []}), tmp_path / "in" / "a.parquet")
    assert "the file has no rows" in refused(*ROWS, f"data.path={tmp_path / 'in' / 'a.parquet'}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not a tokenizer.json"),
        (b"\xff\xfe", "not a tokenizer.json"),
        (b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}', "not a tokenizer.json"),
        (
            b'{"version":"1.0","model":{"type":"WordLevel","vocab":{"[PAD]":4000000000,"a":0},"unk_token":"a"}}',
            "ids up to",
        ),
    ],
    ids=["cut short", "not UTF-8", "empty vocabulary", "ids of gigabytes"],
)
def test_tokenizer(refused, tmp_path, content, said):
    write(tmp_path / "in" / "train.txt", "words and words " * 300)
    path = write(tmp_path / "tokenizer.json", content)
    told = refused(*TEXT, f"data.path={tmp_path / 'in'}", f"tokenizer.path={path}")
    assert said in told
    assert str(path) in told


def test_a_cache_that_is_a_file(refused, tmp_path):
    write(tmp_path / "in" / "train.txt", "words and words " * 300)
    write(tmp_path / "cache", "in the way")
    assert "can't be written" in refused(*TEXT, f"data.path={tmp_path / 'in'}")


def test_texts_of_training_in_other_splits_are_told_and_counted(tmp_path, monkeypatch, capfd, logging_as_it_was):
    """Trained on all the same: it is a warning, on the screen and in the records, with counts."""
    rows = [f"{word} film number {n},{label}" for n in range(15) for word, label in (("good", "a"), ("bad", "b"))]
    for split, lines in {"train": rows, "valid": ["new one,a", *rows[:3]], "test": ["new one,b", "another,a"]}.items():
        write(tmp_path / "in" / f"{split}.csv", "\n".join(["text,label", *lines]))
    words = [*ROWS, f"data.path={tmp_path / 'in'}", f"cache_dir={tmp_path / 'cache'}", "dry_run=true"]
    monkeypatch.setattr(sys, "argv", ["lit_tfm.train", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out = " ".join(capfd.readouterr().out.split())
    assert not ended.value.code
    assert "3 of 4 validation texts are training texts as well" in out
    assert "test texts are training texts" not in out


def test_the_table_is_as_long_as_it_says():
    names = [case[0] for case in (*TEXTS, *TABLES)]
    assert len(set(names)) == len(names) >= 40
    assert all(json.dumps(name) for name in names)
