"""Files of every kind, well and badly made, and the real data sets of the shared folder."""

import csv
import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.data.sources import reading
from lit_tfm.data.sources.documents import split_documents
from lit_tfm.data.sources.files import Files
from lit_tfm.errors import UserError


def write(folder, **files):
    """Files by name, `__` for a dot; text or bytes."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def told(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value), "one line"
    return str(caught.value)


# -- which files are which split ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.txt", "valid.txt", "test.txt"], {"train": 1, "validation": 1, "test": 1}),
        (["wiki.train.tokens", "wiki.valid.tokens"], {"train": 1, "validation": 1}),
        (["train-00000-of-00002.txt", "train-00001-of-00002.txt", "val.txt"], {"train": 2, "validation": 1}),
        (["a.txt", "b.md", "dev.txt"], {"train": 2, "validation": 1}),
        (["train.txt", "README.md", "validation.txt"], {"train": 1, "validation": 1}),  # the read-me is left out
        (["test.txt"], {"train": 1}),  # one file is training text
        (["train.test.txt", "b.txt"], {"train": 2}),  # two splits in one name: neither
        (["testing.txt", "latest.txt"], {"train": 2}),
        (["train/a.txt", "train/b.txt", "test/c.txt"], {"train": 2, "test": 1}),
        (["a.txt", "b.png", ".hidden.txt"], {"train": 1}),
        (["train.en.gz", "val.en.gz"], {"train": 1, "validation": 1}),
    ],
)
def test_names_become_splits(tmp_path, names, splits):
    for name in names:
        content = f"text of {name}\n".encode()
        write(tmp_path, **{name: gzip.compress(content) if name.endswith(".gz") else content})
    source = Files(str(tmp_path))
    assert source.splits() == [split for split in ("train", "validation", "test") if split in splits]
    assert {split: len(list(source.documents(split))) for split in source.splits()} == splits


def test_paths_of_every_form(tmp_path):
    write(tmp_path, a__txt="a\n", b__txt="b\n", **{"deep/c.txt": "c\n"})
    for path, texts in [
        (str(tmp_path / "a.txt"), ["a\n"]),
        ([str(tmp_path / "b.txt"), str(tmp_path / "a.txt")], ["b\n", "a\n"]),
        (str(tmp_path / "*.txt"), ["a\n", "b\n"]),
        (str(tmp_path / "**" / "*.txt"), ["a\n", "b\n", "c\n"]),
        (str(tmp_path), ["a\n", "b\n", "c\n"]),
    ]:
        assert list(Files(path).documents("train")) == texts
    named = Files({"train": str(tmp_path / "a.txt"), "test": [str(tmp_path / "b.txt"), str(tmp_path / "deep")]})
    assert list(named.documents("test")) == ["b\n", "c\n"]
    assert "no validation split, only train, test" in told(lambda: list(named.documents("validation")))


def test_what_is_not_there_is_told_with_the_nearest_name(tmp_path):
    write(tmp_path, **{"corpus/train.txt": "x", "image/a.png": "x"})
    assert "did you mean 'corpus'?" in told(lambda: Files(f"{tmp_path}/korpus/train.txt"))
    assert "did you mean 'train.txt'?" in told(lambda: Files(f"{tmp_path}/corpus/trian.txt"))
    assert "no file matches" in told(lambda: Files(f"{tmp_path}/*.jsonl"))
    assert "holds no text; files that are read: .txt" in told(lambda: Files(f"{tmp_path}/image"))
    assert "did you mean 'validation'?" in told(lambda: Files({"validaton": f"{tmp_path}/corpus"}))
    assert "did you mean 'wikitext'?" in told(lambda: Files(f"{tmp_path}/corpus", document="wikitxt"))


# -- reading ------------------------------------------------------------------------------------------------------


def test_marks_and_line_ends(tmp_path):
    write(tmp_path, a__txt=b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(Files(str(tmp_path)).documents("train")) == ["one\ntwo\n"]
    (tmp_path / "a.txt").write_bytes(gzip.compress("üä\r\n".encode()))
    (tmp_path / "a.txt").rename(tmp_path / "a.txt.gz")
    assert list(Files(str(tmp_path)).documents("train")) == ["üä\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n\n", "empty (blanks only)"),
        ("a.txt", b"fine\nthen\0not", "a NUL at byte 9, line 2)"),
        ("a.txt", b"fine\nthen \xe9t\xe9", "not UTF-8 (0xe9 at byte 10, line 2)"),
        ("a.txt", "text".encode("utf-16"), "UTF-16 text"),
        ("a.txt", gzip.compress(b"text", mtime=0), "a gzip file by its content"),
        ("a.txt.gz", b"text", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"text" * 1000, mtime=0)[:-9], "not a whole gzip file"),
        ("a.zip", b"PK", "archives are not read"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n["x"]\n', "line 2 holds a list"),
        ("a.jsonl", b'{"txt": "x"}\n', "no column 'text'; there are txt, did you mean 'txt'?"),
        ("a.jsonl", b'{"text": {"a": 1}}\n', "holds a dict, not text"),
        ("a.csv", b'text,label\na,b\n"a,b",c,d\n', "line 3 has 3 fields, the first has 2"),
        ("a.csv", b'text,label\n"a,b\n', "line 2"),
        ("a.csv", b"good film,1\nbad film,0\n", "the first line reads good film | 1; for no header"),
        ("a.parquet", b"PAR1 and nothing", "not a whole parquet file"),
    ],
)
def test_bad_files_are_told_with_name_and_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    text = told(lambda: list(Files(str(tmp_path / name)).documents("train")))
    assert message in text
    assert str(tmp_path / name) in text


def test_places_are_right_beyond_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 16)
    text = "".join(f"line {i} ä\r\n" for i in range(50))
    write(tmp_path, a__txt=text, b__txt=text.encode() + b"\xff", c__txt=text.encode() + b"\0")
    assert reading.read_text(tmp_path / "a.txt") == text.replace("\r\n", "\n")
    assert f"at byte {len(text.encode()):,}, line 51)" in told(lambda: reading.read_text(tmp_path / "b.txt"))
    assert f"at byte {len(text.encode()):,}, line 51)" in told(lambda: reading.read_text(tmp_path / "c.txt"))
    write(tmp_path, d__jsonl=b'{"text": "xxxxxxxxxxxxxxxxx"}\n' * 7 + b"{")
    assert "line 8 is not JSON" in told(lambda: list(Files(str(tmp_path / "d.jsonl")).documents("train")))


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)


@given(rows=st.lists(st.tuples(CELLS.filter(str.strip), CELLS), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_every_kind_of_table_gives_the_same_rows(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("tables")
    table = [{"text": text, "label": f"l{label.strip()}"} for text, label in rows]
    with open(folder / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(table)
    (folder / "t.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table), "utf-8")
    pq.write_table(pa.Table.from_pylist(table), folder / "t.parquet")
    (folder / "t.jsonl.gz").write_bytes(gzip.compress((folder / "t.jsonl").read_bytes()))
    wanted = [(row["text"], row["label"]) for row in table]
    for kind in ("csv", "jsonl", "parquet", "jsonl.gz"):
        source = Files(str(folder / f"t.{kind}"))
        assert [(row["text"], row["label"]) for row in source.rows("train")] == wanted
        assert list(source.documents("train")) == [text for text, _ in wanted]


# -- columns and labels -------------------------------------------------------------------------------------------


def test_columns_by_position_and_joined(tmp_path):
    write(tmp_path, a__csv='3,"Title","Body, long"\n1,"","Only body"\n')
    source = Files(str(tmp_path / "a.csv"), text=[1, 2], label=0, labels=["x", "y", "z"], label_offset=1)
    assert [(row["text"], row["label"]) for row in source.rows("train")] == [
        ("Title Body, long", "z"),
        ("Only body", "x"),
    ]
    assert source.labels == ("x", "y", "z")


def test_tabs_do_not_care_for_quotes(tmp_path):
    write(tmp_path, a__tsv='a "lone quote\t0\n"b\t1\n')
    rows = Files(str(tmp_path / "a.tsv"), text=0, label=1).rows("train")
    assert [row["text"] for row in rows] == ['a "lone quote', '"b']


def test_pairs_and_several_labels(tmp_path):
    write(tmp_path, a__jsonl='{"p": "x", "h": "y", "tags": ["red", "hot"]}\n{"p": "x", "h": "y", "tags": []}\n')
    source = Files(str(tmp_path / "a.jsonl"), text="p", text_b="h", label="tags")
    assert [(row["text_b"], row["label"]) for row in source.rows("train")] == [("y", ["red", "hot"]), ("y", [])]
    write(tmp_path, b__csv="text,label\nx,red|hot\ny,red\n")
    rows = Files(str(tmp_path / "b.csv"), label_separator="|").rows("train")
    assert [row["label"] for row in rows] == [["red", "hot"], ["red"]]
    write(tmp_path, c__csv="text,red,hot\nx,1,1\ny,0,1\nz,-1,0\n")
    source = Files(str(tmp_path / "c.csv"), label=["red", "hot"])
    assert [row["label"] for row in source.rows("train")] == [["red", "hot"], ["hot"], None]
    assert source.labels == ("red", "hot")


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("7", {"labels": ["a", "b"]}, "stand for 0 to 1"),
        ("0", {"labels": ["a", "b"], "label_offset": 1}, "stand for 1 to 2"),
        ("postive", {"labels": ["positive", "negative"]}, "did you mean 'positive'?"),
        ("a", {"label": "lable"}, "did you mean 'label'?"),
        ("2", {"label": ["label", "text"]}, "each holds 0 or 1"),
    ],
)
def test_wrong_labels_are_told(tmp_path, label, options, message):
    write(tmp_path, a__csv=f"text,label\nx,{label}\n")
    text = told(lambda: list(Files(str(tmp_path), **options).rows("train")))
    assert message in text
    assert "line 2" in text


def test_hidden_labels_are_none(tmp_path):
    write(tmp_path, a__jsonl='{"text": "x", "label": -1}\n{"text": "y", "label": null}\n{"text": "z", "label": 1}\n')
    rows = Files(str(tmp_path), labels=["no", "yes"]).rows("train")
    assert [row["label"] for row in rows] == [None, None, "yes"]


def test_rows_of_plain_text_are_refused(tmp_path):
    write(tmp_path, a__txt="x\n")
    assert "needs rows with labels" in told(lambda: list(Files(str(tmp_path)).rows("train")))


# -- fingerprints -------------------------------------------------------------------------------------------------


def test_fingerprints_follow_content_and_settings_not_places(tmp_path):
    one = write(tmp_path / "one", train__txt="abc\n", test__txt="def\n")
    two = write(tmp_path / "two", train__txt="abc\n", test__txt="def\n")
    first = Files(str(one)).fingerprint()
    assert Files(str(two)).fingerprint() == first
    assert Files(str(one), document="line").fingerprint() != first
    write(two, train__txt="abd\n")
    assert Files(str(two)).fingerprint() != first, "same size, same second: the time in nanoseconds tells"
    swapped = write(tmp_path / "three", train__txt="def\n", test__txt="abc\n")
    assert Files(str(swapped)).fingerprint() != first


# -- documents ----------------------------------------------------------------------------------------------------

TEXT = "\n = One = \n \n Text . \n = = Part = = \n More = 3 . \n = 2 = \n in a table \n \n = Two = \n \n Short . \n"


def test_articles_paragraphs_lines():
    one, two = split_documents([TEXT], "wikitext")
    assert one + two == TEXT
    assert two == " = Two = \n \n Short . \n"
    assert list(split_documents([TEXT], "paragraph"))[-2:] == [" = Two = ", " Short . "]
    assert list(split_documents([TEXT], "line"))[:2] == [" = One = ", " Text . "]
    assert list(split_documents([TEXT], "file")) == [TEXT]


@pytest.mark.parametrize("how", ["file", "line", "paragraph", "wikitext"])
@given(
    lines=st.lists(st.sampled_from(["", " ", " = T = ", " = = S = = ", " words . ", "x"]), max_size=25), data=st.data()
)
@settings(max_examples=60, deadline=None)
def test_blocks_do_not_show(how, lines, data):
    """A file read in blocks of whole lines gives the documents of the file read at once."""
    lines = [line + "\n" for line in lines]
    at = sorted(data.draw(st.lists(st.integers(0, len(lines)), max_size=5)))
    blocks = ["".join(lines[a:b]) for a, b in zip([0, *at], [*at, len(lines)], strict=True)]
    whole = list(split_documents(["".join(lines)], how))
    assert list(split_documents(blocks, how)) == whole
    if how in ("file", "wikitext"):
        assert "".join(whole) == "".join(lines)
    assert all(whole)


# -- real data ----------------------------------------------------------------------------------------------------


def test_wikitext_articles(shared_data):
    source = Files(str(shared_data / "wikitext-2"), document="wikitext")
    articles = {split: list(source.documents(split)) for split in source.splits()}
    assert {split: len(texts) for split, texts in articles.items()} == {"train": 600, "validation": 60, "test": 60}
    assert "".join(articles["test"]) == (shared_data / "wikitext-2/test.txt").read_text()
    assert source.running


@pytest.mark.parametrize(
    ("path", "options", "counts"),
    [
        (
            "ag_news/test.csv",
            {"text": [1, 2], "label": 0, "labels": ["World", "Sports", "Business", "Sci/Tech"], "label_offset": 1},
            {"train": {"World": 1900, "Sports": 1900, "Business": 1900, "Sci/Tech": 1900}},
        ),
        (
            "sst2",
            {"text": 0, "label": 1, "labels": ["negative", "positive"]},
            {
                "train": {"negative": 3310, "positive": 3610},
                "validation": {"negative": 428, "positive": 444},
                "test": {"negative": 912, "positive": 909},
            },
        ),
    ],
)
def test_real_rows(shared_data, path, options, counts):
    source = Files(str(shared_data / path), **options)
    assert {s: dict(Counter(row["label"] for row in source.rows(s))) for s in source.splits()} == counts


def test_real_gzip_and_jsonl(shared_data):
    source = Files(str(shared_data / "multi30k_en_de" / "*.en.gz"), document="line")
    assert {s: len(list(source.documents(s))) for s in source.splits()} == {
        "train": 29000,
        "validation": 1014,
        "test": 1000,
    }
    emotion = Files(str(shared_data / "emotion"))
    assert {s: len(list(emotion.rows(s))) for s in emotion.splits()} == {
        "train": 16000,
        "validation": 2000,
        "test": 2000,
    }
    papers = Files(str(shared_data / "scitldr"), text="source")
    assert next(papers.documents("train")).count(". ") > 1  # a list of sentences, joined


def test_bytes_that_are_no_text_are_replaced_on_request_and_counted(tmp_path, caplog):
    path = tmp_path / "mixed.txt"
    path.write_bytes("caf\u00e9 \ufffd\n".encode() + b"caf\xe9 and \xff\xfe\n" + b"a\0b\n")
    with pytest.raises(UserError, match=r"binary, not text .* or data\.errors=replace"):
        list(Files(str(path)).documents("train"))
    assert "".join(Files(str(path), errors="replace").documents("train")).split("\n")[:3] == [
        "caf\u00e9 \ufffd",  # one that was in the text already
        "caf\ufffd and \ufffd\ufffd",
        "a b",
    ]
    assert "4 places that are not UTF-8 text were replaced" in caplog.text
    with pytest.raises(UserError, match="one of strict, replace"):
        Files(str(path), errors="ignore")


def test_a_broken_row_elsewhere_does_not_hide(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text,label\n"caf\xe9",good\n')
    with pytest.raises(UserError, match="not UTF-8"):
        list(Files(str(path)).rows("train"))
    assert [row["text"] for row in Files(str(path), errors="replace").rows("train")] == ["caf\ufffd"]


def test_hard_texts_arrive_as_they_are(tmp_path):
    """Combining characters, emoji of several code points, right-to-left, a line of 9 MB, no last line end."""
    texts = [
        "e\u0301 \U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
        "x" * 9_000_000,
        "",
        "end",
    ]
    path = tmp_path / "hard.txt"
    path.write_bytes("\r\n".join(texts).encode("utf-8-sig"))
    assert "".join(Files(str(path)).documents("train")) == "\n".join(texts)
