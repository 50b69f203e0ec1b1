"""Which split is opened, and of what."""

from pathlib import Path

import pytest

from lit_tfm.data.holdout import HeldOut
from lit_tfm.data.sources.files import Files
from lit_tfm.errors import UserError
from lit_tfm.evaluation.splits import choose, open_split
from lit_tfm.evaluation.subject import open_subject


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},good\nmore {name},bad\n")
    return tmp_path


def test_the_test_split_comes_first_and_words_for_splits_are_known(files) -> None:
    held = HeldOut(Files(str(files)), {})
    assert choose(held, None, own=True) == ("test", "test")
    assert choose(held, "dev", own=True) == ("validation", "validation")
    (files / "test.csv").unlink()
    held = HeldOut(Files(str(files)), {})
    assert choose(held, None, own=True) == ("validation", "validation")
    with pytest.raises(UserError, match="has train, validation"):
        choose(held, "test", own=True)


def test_one_file_is_a_whole_where_it_is_not_the_runs_own(files) -> None:
    held = HeldOut(Files(str(files / "test.csv")), {"validation": 0.5})
    assert choose(held, None, own=True) == ("validation", "validation")
    assert choose(held, None, own=False) == ("train", "all")
    assert len(list(held.rows("train"))) == 2
    assert choose(held, "test", own=False) == ("train", "test")


def test_the_hash_that_runs_have_recorded_stays(files) -> None:
    """data.json of a run names its data by it: where it changes for the same content, every run is told otherwise."""
    (files / "valid.csv").unlink()
    found = Files(str(files)).fingerprint()
    assert found == "b1fe6a8e52f603141f92ff80bab77a6cc19a40722913334d5f39cdb146686105"


def test_texts_are_those_of_the_source(trained_runs) -> None:
    subject = open_subject(trained_runs("pairs"))
    split = open_split(subject, "validation")
    rows = list(split.source.rows("validation"))
    assert split.texts([3, 0]) == {i: f"{rows[i]['text']} ‖ {rows[i]['text_b']}" for i in (0, 3)}


def test_labels_are_numbered_as_the_run_does(trained_runs, tmp_path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("text,label\na film,plain\na story,bad\n")
    subject = open_subject(trained_runs("encoder"), overrides=(f"data.path={path}",))
    split = open_split(subject)
    assert subject.task.facts.labels == ("bad", "good", "plain")
    assert split.data.classes[split.inner].tolist() == [2, 0]


def test_several_labels_for_a_run_that_knows_one(trained_runs, tmp_path) -> None:
    path = tmp_path / "several.csv"
    path.write_text("text,label\na film,plain|bad\na story,bad\n")
    overrides = (f"data.path={path}", "data.label_separator='|'")
    with pytest.raises(UserError, match="several labels"):
        open_split(open_subject(trained_runs("encoder"), overrides=overrides))
    subject = open_subject(trained_runs("several"), overrides=(f"data.path={path}",))
    assert open_split(subject).data.classes["test"].tolist() == [[1, 0, 0, 1], [1, 0, 0, 0]]
