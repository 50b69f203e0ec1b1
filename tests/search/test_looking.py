"""A sweep is found from the words that started it, without composing or writing anything."""

from pathlib import Path

import pytest

from lit_tfm.errors import UserError
from lit_tfm.runs import write_text
from lit_tfm.search.looking import look
from lit_tfm.search.study import open_study
from lit_tfm.search.supervisor import status_yaml


def started(settings) -> None:
    open_study(settings, settings.folder)
    write_text(settings.folder / "sweep.yaml", status_yaml(settings))


def test_by_its_words_and_by_its_folder(a_sweep, tmp_path: Path) -> None:
    settings = a_sweep("name=mine")
    started(settings)
    yaml = tmp_path / "tried.yaml"
    for words in ([f"sweep={yaml}", f"output_dir={settings.folder}"], [f"sweep={settings.folder}"]):
        folder, study = look(words)
        assert folder == settings.folder
        assert study.study_name == "mine"


def test_what_has_not_been_started_is_told_and_nothing_made(a_sweep, tmp_path: Path) -> None:
    a_sweep()
    with pytest.raises(UserError, match=r"there is no sweep 'tried' yet"):
        look([f"sweep={tmp_path / 'tried.yaml'}", f"output_dir={tmp_path / 'none'}"])
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"type sweep=NAME or sweep=FOLDER"):
        look([])


def test_a_database_whose_password_is_kept_nowhere_has_to_be_typed(a_sweep) -> None:
    settings = a_sweep("storage=postgresql://me:secret@127.0.0.1:9/none")
    settings.folder.mkdir()
    write_text(settings.folder / "sweep.yaml", status_yaml(settings))
    assert "secret" not in (settings.folder / "sweep.yaml").read_text()
    with pytest.raises(UserError, match=r"type storage="):
        look([f"sweep={settings.folder}"])
