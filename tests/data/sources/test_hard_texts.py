"""Texts as people have them: arriving as they are, or refused with their place. Broken ones: test_broken_inputs.py."""

import gzip
import json
import resource
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.data.classification import in_order
from lit_tfm.data.sources import reading
from lit_tfm.data.sources.files import Files
from lit_tfm.data.store import TokenStore, write_texts
from lit_tfm.data.tokenizers import BPE, Byte
from lit_tfm.errors import UserError

HARD = [
    "e\u0301 combining, \u00e9 composed",  # two texts: nothing is normalised
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 emoji of several code points",
    "\u05e9\u05dc\u05d5\u05dd \u202e\u0645\u0631\u062d\u0628\u0627\u202c right to left, with its marks",
    "form\x0cfeed, \x0b, \x85, \u2028 and \u2029 end no line",
    "a\rb",  # a lone carriage return
    "\ufeff in the middle \ufeff",
    "\x1b[31mcontrol\x07",
    "\U0010fffd\ue000 of nobody",
]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.tsv"])
def test_hard_texts_are_documents_and_come_back_from_bytes(tmp_path, name):
    """Through every reader, into a store of bytes and out again."""
    texts = [text for text in HARD if "\r" not in text] if name.endswith("sv") else HARD
    if name.endswith("jsonl"):
        content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    elif name.endswith("csv"):
        content = "text\n" + "".join(f'"{text}"\n' for text in texts)
    else:
        content = "text\n" * name.endswith("tsv") + "\n".join(texts) + "\n"
    packed = gzip.compress(content.encode()) if name.endswith("gz") else content.encode()
    (tmp_path / name).write_bytes(packed)
    found = list(Files(str(tmp_path / name), document="line").documents("train"))
    assert found == texts
    tokenizer = Byte().train(())
    write_texts(tmp_path / "store", found, tokenizer)
    store = TokenStore(tmp_path / "store")
    assert [tokenizer.decode(store.document(i)) for i in range(len(store))] == texts
    assert unicodedata.normalize("NFC", texts[0]) != texts[0], "a composed text is another one"


@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300),
    block=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_as_it_is_in_blocks_of_any_size(tmp_path_factory, text, block):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(("x" + text).encode())
    usual, reading.BLOCK = reading.BLOCK, block
    try:
        assert reading.read_text(path) == "x" + text.replace("\r\n", "\n")
    finally:
        reading.BLOCK = usual


@pytest.mark.parametrize("blanks", [True, False])
def test_a_line_of_50_mb(tmp_path, blanks):
    """Read without being copied once for each block: memory stays within a few times the line."""
    line = b"some words of a line that ends not soon " if blanks else b"0123456789abcdefghijklmnopqrstuvwxyzABCD"
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n" + line * (50_000_000 // len(line)) + b"\nlast\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first, long, last = Files(str(path), document="line").documents("train")
    assert (first, len(long), last) == ("first", 50_000_000, "last")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 400, "MB"


def test_replacing_counts_each_place_and_keeps_the_rest(tmp_path, caplog):
    broken = b"\xff\xfe one\n" + b"caf\xe9 \xc3\n" + b"\0\0 \xed\xa0\x80\n"
    (tmp_path / "a.txt").write_bytes(b"\n" + broken)
    (text,) = Files(str(tmp_path / "a.txt"), errors="replace").documents("train")
    assert text == "\n\ufffd\ufffd one\ncaf\ufffd \ufffd\n   \ufffd\ufffd\ufffd\n"
    assert "a.txt: 9 places that are not UTF-8 text were replaced (data.errors=replace)" in caplog.text
    (tmp_path / "b.jsonl").write_text(
        '{"text": "a\\ud83d", "label": "\\udead"}\n{"text": "\\ud83d\\ude00", "label": 1}\n'
    )
    rows = list(Files(str(tmp_path / "b.jsonl"), errors="replace").rows("train"))
    assert [(row["text"], row["label"]) for row in rows] == [("a\ufffd", "\ufffd"), ("\U0001f600", "1")]
    assert "b.jsonl: 2 halves of characters" in caplog.text


def test_csv_as_spreadsheets_write_it(tmp_path):
    """A mark, CRLF, quotes within quotes, line ends within quotes, an index without a name, no last line end."""
    content = '\ufeff,text,label\r\n0,"say ""hi""",a b\r\n1,"two\r\nlines, one cell", a b \r\n\r\n2,plain,"c,d"'
    (tmp_path / "a.csv").write_bytes(content.encode())
    rows = list(Files(str(tmp_path / "a.csv")).rows("train"))
    assert [(row["text"], row["label"]) for row in rows] == [
        ('say "hi"', "a b"),
        ("two\nlines, one cell", "a b"),
        ("plain", "c,d"),
    ]
    wide = ",text,,label\n0,x,junk,y\n"
    (tmp_path / "b.csv").write_text(wide)
    assert [row["label"] for row in Files(str(tmp_path / "b.csv"), text=1, label=3, header=True).rows("train")] == ["y"]


def test_labels_of_mixed_types(tmp_path):
    """1, "1" and 1.0 are one class, true is another, null and NaN are none; names keep their blanks inside."""
    values = [
        "1",
        '"1"',
        "1.0",
        '" 1 "',
        "true",
        "null",
        "NaN",
        '"two words"',
        "-5",
        "2.5",
        '"\u0663"',
        '"\u00b2"',
        '"--5"',
    ]
    lines = [f'{{"text": "x", "label": {value}}}\n' for value in values]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    labels = [row["label"] for row in Files(str(tmp_path / "a.jsonl")).rows("train")]
    assert labels == ["1", "1", "1", "1", "True", None, None, "two words", "-5", "2.5", "\u0663", "\u00b2", "--5"]
    names = in_order({label for label in labels if label})
    assert names[:2] == ["-5", "1"], "numbers by size, first"
    assert names[2:] == sorted(names[2:])
    with pytest.raises(UserError, match="line 12: label '\u00b2' is not one of"):
        list(
            Files(str(tmp_path / "a.jsonl"), labels=["-5", "1", "True", "two words", "2.5", "\u0663", "--5"]).rows(
                "train"
            )
        )


@pytest.mark.slow
def test_a_line_of_50_mb_without_a_blank_becomes_tokens(tmp_path):
    """A trainer that took the square of a word's length would not come back."""
    tokenizer = BPE(vocab_size=400).train(["0123456789" * 5_000_000, "words"])
    write_texts(tmp_path, ["0123456789" * 5_000_000], tokenizer)
    assert 0 < len(TokenStore(tmp_path).tokens) <= 50_000_000
    assert np.unique(TokenStore(tmp_path).tokens[:-20]).size < 20
