"""A sweep seen from outside: its folder and study, found from the words of its command. Composes and writes nothing."""

import contextlib
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from lit_tfm.errors import UserError
from lit_tfm.search import settings
from lit_tfm.search.composer import read_word
from lit_tfm.search.outcomes import read_yaml
from lit_tfm.search.storage import check_storage, connect, is_journal, journal_path, reachable, shown


def look(words: list[str]) -> tuple[Path, optuna.Study]:
    """(folder, study) of the sweep that `words` start, or whose folder `sweep=FOLDER` names.

    Raises UserError where it has not been started.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    typed = dict(read_word(word) for word in words)
    folder, name = _place(typed)
    stored = read_yaml(folder / "sweep.yaml")
    storage = typed.get("storage", stored.get("storage"))
    if typed.get("storage") is None and settings.MASK in str(storage):
        raise UserError(
            f"{folder}: the password of its storage is kept nowhere; type storage=... as it was started with"
        )
    if typed.get("storage") is None:
        check_storage(storage, folder, folder / "sweep.yaml")
    name = str(stored.get("name", name))
    with reachable(storage, folder), contextlib.suppress(KeyError, FileNotFoundError):
        return folder, optuna.load_study(study_name=name, storage=_reading(storage, folder))
    raise UserError(
        f"{shown(storage, folder)}: there is no sweep {name!r} yet; the same command without --status starts it"
    )


def _place(typed: dict[str, Any]) -> tuple[Path, str]:
    given = str(typed.get("sweep", ""))
    if given and (Path(given) / "sweep.yaml").is_file():
        return Path(given), Path(given).name
    path = settings.find(given) if given else None
    if path is None:
        raise UserError(f"type sweep=NAME or sweep=FOLDER; there is {', '.join(settings.known_sweeps())}")
    known = {**settings.read_yaml(path), **typed}
    name = str(known.get("name") or path.stem)
    return Path(known.get("output_dir") or Path("outputs") / "sweeps" / name), name


def _reading(storage: str | None, folder: Path) -> BaseStorage:
    if not is_journal(storage):
        return connect(storage, folder)
    path = journal_path(storage, folder)
    if not path.exists():
        raise FileNotFoundError(path)
    return JournalStorage(JournalFileBackend(str(path)))
