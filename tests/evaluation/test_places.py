"""Relative paths of a run's config are found from another working directory, and what is missing is told."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_tfm.errors import UserError
from lit_tfm.evaluation import places
from lit_tfm.runs import RunFolder


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run started in `there`, which has data/train.txt; the working directory is `here`."""
    for folder in ("there/data", "there/run", "here"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "there/data/train.txt").write_text("text")
    (tmp_path / "there/run/environment.json").write_text(json.dumps({"directory": str(tmp_path / "there")}))
    monkeypatch.chdir(tmp_path / "here")
    return RunFolder(tmp_path / "there/run")


def found(run: RunFolder, path):
    return OmegaConf.to_container(places.find(OmegaConf.create({"data": {"path": path}}), run, "data.path"))["data"][
        "path"
    ]


def test_a_relative_path_is_found_where_the_run_was_started(moved, tmp_path) -> None:
    there = tmp_path / "there"
    assert found(moved, "data") == str(there / "data")
    assert found(moved, "data/*.txt") == str(there / "data/*.txt")
    assert found(moved, {"train": ["data/train.txt"]}) == {"train": [str(there / "data/train.txt")]}
    assert found(moved, None) is None


def test_the_working_directory_comes_first(moved, tmp_path) -> None:
    (tmp_path / "here/data").mkdir()
    assert found(moved, "data") == str(tmp_path / "here/data")


def test_what_was_looked_for_is_said(moved, tmp_path) -> None:
    with pytest.raises(UserError, match=r"looked for .*here/gone and .*there/gone; type data.path="):
        found(moved, "gone")


def test_a_run_that_does_not_say_where_it_was_started(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert found(RunFolder(tmp_path / "run"), "data") == "data" or Path(found(RunFolder(tmp_path), "data")).is_dir()
    with pytest.raises(UserError, match="looked for gone;"):
        found(RunFolder(tmp_path / "run"), "gone")
