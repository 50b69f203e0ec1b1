"""Which columns are the text, and rows that come as they stand in the file."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_tfm.errors import UserError
from lit_tfm.prediction.rows import Table, of_words


def cfg(**data):
    return OmegaConf.create({"data": data})


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("data", "given", "found"),
    [
        ({}, (), ["hello"]),
        ({"text": "title"}, (), ["a title"]),
        ({"text": 0, "hub": {"text": "title"}}, (), ["a title"]),
        ({"text": [1, 2], "hub": {"text": "gone"}}, (), ["hello"]),
        ({"text": ["title", "text"]}, (), ["a title hello"]),
        ({}, ("title",), ["a title"]),
        ({}, ("title", "text"), ["a title hello"]),
        ({}, ("1",), ["title", "a title"]),  # by position: a file without a header
    ],
)
def test_the_column_is_the_one_asked_for_or_the_one_trained_on(tmp_path, data, given, found) -> None:
    path = write(tmp_path / "in.csv", "id,title,text\n7,a title,hello\n")
    assert [row.text for row in Table(path, cfg(**data), given)] == found


def test_pairs_come_from_two_columns_or_a_tab(tmp_path) -> None:
    pair = cfg(text="premise", text_b="hypothesis")
    path = write(tmp_path / "in.csv", "hypothesis,premise\nb,a\n")
    assert [(row.text, row.text_b) for row in Table(path, pair)] == [("a", "b")]
    path = write(tmp_path / "in.txt", "a\tb\n")
    assert [(row.text, row.text_b) for row in Table(path, pair)] == [("a", "b")]
    assert [(row.text, row.text_b) for row in of_words(["a", "b", "c", "d"], pair=True)] == [("a", "b"), ("c", "d")]
    with pytest.raises(UserError, match="3 texts"):
        of_words(["a", "b", "c"], pair=True)


def test_lines_keep_their_places(tmp_path) -> None:
    """A blank line is a text as well: what stands beside the file stays in step."""
    path = write(tmp_path / "in.txt", "one\n\nthree\u2028still three\nfour")
    assert [row.text for row in Table(path, cfg())] == ["one", "", "three\u2028still three", "four"]


def test_rows_can_be_skipped_and_come_in_chunks(tmp_path) -> None:
    path = write(tmp_path / "in.jsonl", "".join(json.dumps({"text": str(i), "n": i}) + "\n" for i in range(10)))
    table = Table(path, cfg())
    assert [[row.text for row in chunk] for chunk in table.chunks(4, skip=3)] == [list("3456"), list("789")]
    count, _, names = table.survey()
    assert (count, names) == (10, ["text", "n"])


def test_half_a_surrogate_pair_does_not_reach_the_tokenizer(tmp_path) -> None:
    path = write(tmp_path / "in.jsonl", '{"text": "a\\ud800b"}\n')
    with pytest.raises(UserError, match=r"line 1 holds half a character \(\\ud800\)"):
        list(Table(path, cfg()))
    (row,) = Table(path, cfg(), errors="replace")
    assert row.text == row.values["text"] == "a\ufffdb"


def test_the_survey_finds_what_is_wrong_far_behind(tmp_path) -> None:
    path = write(tmp_path / "in.csv", "id,text\n" + "1,fine\n" * 50 + "2,too,many\n")
    with pytest.raises(UserError, match="line 52 has 3 fields"):
        Table(path, cfg()).survey()
