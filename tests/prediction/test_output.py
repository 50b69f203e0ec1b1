"""Lines of predictions that any reader of csv and json gives back as they were."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.prediction.output import Lines, Output, free
from lit_tfm.prediction.predictor import Prediction
from lit_tfm.prediction.rows import Row

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def row(text: str, **more) -> Row:
    return Row({"id": "7", "text": text, **more}, text)


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_csv_gives_back_every_cell(texts) -> None:
    lines = Lines("csv", ["id", "text"], ["predicted", "probability"])
    answers = [Prediction([text[::-1], "0.5"], {}) for text in texts]
    written = lines.head() + lines.chunk([row(text) for text in texts], answers)
    found = list(csv.reader(io.StringIO(written, newline=""), strict=True))
    assert found == [["id", "text", "predicted", "probability"], *(["7", text, text[::-1], "0.5"] for text in texts)]


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_jsonl_gives_back_every_value(texts) -> None:
    lines = Lines("jsonl", ["id", "text"], ["predicted"])
    assert lines.head() == ""
    answers = [Prediction([], {"predicted": text, "probability": 0.5}) for text in texts]
    written = lines.chunk([row(text, more=[1, None]) for text in texts], answers)
    found = [json.loads(line) for line in written.split("\n")[:-1]]
    assert found == [
        {"id": "7", "text": text, "more": [1, None], "predicted": text, "probability": 0.5} for text in texts
    ]


def test_a_column_of_the_input_keeps_its_name() -> None:
    assert free("predicted", ["text"]) == "predicted"
    assert free("predicted", ["predicted", "predicted_2"]) == "predicted_3"
    lines = Lines("csv", ["text", "probability"], ["predicted", "probability"])
    assert lines.head() == "text,probability,predicted,probability_2\n"


@pytest.mark.parametrize(("value", "cell"), [(None, ""), (3, "3"), ([1, "a"], '[1, "a"]'), (True, "true")])
def test_values_that_are_no_text(value, cell) -> None:
    lines = Lines("csv", ["text", "n"], [])
    assert next(csv.reader([lines.chunk([row("x", n=value)], [Prediction([], {})])])) == ["x", cell]


def test_half_a_surrogate_pair_is_written_as_json_escapes_it(tmp_path) -> None:
    output = Output(tmp_path / "out.jsonl", {"input": "x"})
    output.append(json.dumps({"text": "\ud800"}, ensure_ascii=False) + "\n", 1)
    output.finish()
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == {"text": "\ud800"}
