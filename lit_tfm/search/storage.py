"""Where a study is kept: a journal file in the sweep's folder, or any URL that Optuna knows.

A storage that can't be reached, read or written is a person's mistake and told in one line, without its password.
"""

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from lit_tfm.errors import UserError

JOURNAL = "study.journal"
PATIENCE = 10  # seconds until a database that does not answer is given up
# Several processes that make the tables of a new database at the same time: all but one are told they exist.
COLLISIONS = (IntegrityError, ProgrammingError, OperationalError)
FIRST = re.compile(rb'\{"op_code":\d+,"worker_id":')  # what every line of Optuna's begins with
SERVERS = ("postgresql", "mysql", "mariadb")  # any other database is a file
LOCAL = ("localhost", "127.0.0.1", "::1")


class FileLock(JournalFileOpenLock):
    """The kernel's lock on a file beside the journal: a process that is killed gives it back at once.

    Optuna's own locks are files that stay behind a killed process; the others wait half a minute and then guess.
    """

    def __init__(self, journal: Path) -> None:
        self.journal, self.path = journal, journal.with_name(f".{journal.name}.lock")
        self._held: int | None = None

    def acquire(self) -> bool:
        held = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(held, fcntl.LOCK_EX)
        self._held = held
        try:
            self._mend()
        except BaseException:
            self.release()  # or the next to try, also in this process, would wait for ever
            raise
        return True

    def release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _mend(self) -> None:
        """Cut off half a line that a full disk left: nobody was told it was written, and no reader gets past it."""
        with open(self.journal, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(0)
            if end and not FIRST.match(file.read(64)):
                raise ValueError("it holds something that is no study")
            if end == 0 or _ends_a_line(file, end):
                return
            start = max(0, end - 2**20)
            file.seek(start)
            newline = file.read().rfind(b"\n")
            if newline < 0:  # what is left would be no journal, and this may be none either
                raise ValueError("it holds half a line and no more; remove it if it is a sweep's")
            file.truncate(start + newline + 1)


def _ends_a_line(file: BinaryIO, end: int) -> bool:
    here = file.tell()
    file.seek(end - 1)
    last = file.read(1)
    file.seek(here)
    return last == b"\n"


def is_journal(storage: str | None) -> bool:
    return storage is None or "://" not in storage


def database_url(storage: str) -> URL:
    """With psycopg 3 for PostgreSQL, which a plain `postgresql://` would look for psycopg2 for."""
    try:
        url = make_url(storage)
    except ArgumentError:
        raise UserError(
            "storage: not a URL that can be read; type e.g. storage=postgresql://user@host/database, or leave it out"
        ) from None
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def shown(storage: str | None, folder: Path) -> str:
    """For people: without a password."""
    if is_journal(storage):
        return str(journal_path(storage, folder))
    return make_url(storage).render_as_string(hide_password=True)


def journal_path(storage: str | None, folder: Path) -> Path:
    return Path(storage).expanduser() if storage else folder / JOURNAL


def check_storage(storage: Any, folder: Path, source: Path) -> None:
    """Raises UserError where `source`, which may be somebody else's, keeps the study of the sweep in `folder` anywhere
    but there or in a database of this machine."""
    if storage is None:
        return
    if not isinstance(storage, str):
        raise UserError(f"{source}: storage={storage}: a text is needed")
    url = None if is_journal(storage) else database_url(storage)
    if url is not None and url.get_backend_name() in SERVERS:
        wrong = _elsewhere(url)
    else:
        place = journal_path(storage, folder) if url is None else Path(url.database or "")
        inside = place.resolve().is_relative_to(folder.resolve())
        # A query can make SQLite read the path as an address.
        wrong = None if inside and not (url is not None and url.query) else f"a file outside of {folder}"
    if wrong:
        raise UserError(f"{source}: storage={shown(storage, folder)}: {wrong}; if you trust it, type storage= yourself")


def _elsewhere(url: URL) -> str | None:
    """What is wrong with a stranger's database: drivers take more than a host from the query, a service or a file."""
    if further := set(url.query) - {"host", "port"}:
        return f"{', '.join(sorted(further))} may lead anywhere"
    asked = url.query.get("host", ())
    hosts = [url.host or "", *(asked.split(",") if isinstance(asked, str) else asked)]
    if all(not host or host in LOCAL or (host.startswith("/") and "," not in host) for host in hosts):
        return None
    return "another machine, which would be told of every trial"


def connect(storage: str | None, folder: Path) -> BaseStorage:
    """The storage, reached. Raises UserError where it can't be.

    `storage` is a URL, the path of a journal, or None for the journal of the sweep in `folder`.
    """
    if is_journal(storage):
        return _journal(journal_path(storage, folder))
    with reachable(storage, folder):
        url = database_url(storage)
        for attempt in range(5):
            try:
                return optuna.storages.get_storage(_database(url))
            except COLLISIONS as error:
                if attempt == 4 or not _collided(error):
                    raise
                time.sleep(0.2 * (attempt + 1))
    raise AssertionError("unreachable")


def _journal(path: Path) -> JournalStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
        lock = FileLock(path)
        lock.acquire()
        lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path}: the study can't be kept there ({reason}); name another folder with output_dir=, or a storage="
        ) from error


def _database(url: URL) -> optuna.storages.RDBStorage:
    sqlite = url.get_backend_name() == "sqlite"
    waits = {"timeout": 60} if sqlite else {"connect_timeout": PATIENCE} if "psycopg" in url.drivername else {}
    # A connection that a restarted server has dropped is noticed before it is used.
    kwargs = {"connect_args": waits, "pool_pre_ping": not sqlite}
    return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=kwargs)


def _collided(error: SQLAlchemyError) -> bool:
    text = str(error).lower()
    return "already exists" in text or "unique" in text or "duplicate" in text


@contextlib.contextmanager
def reachable(storage: str | None, folder: Path):
    """What a storage answers to a person who named a wrong one, in one line."""
    try:
        yield
    except (ImportError, ModuleNotFoundError) as error:
        raise UserError(
            f"storage={shown(storage, folder)}: the driver is not installed ({error}); "
            "pip install 'lit_tfm[postgres]', or leave storage= out for a journal in the sweep's folder"
        ) from error
    except (SQLAlchemyError, StorageInternalError, OSError, RuntimeError) as error:
        what = "is read-only" if "read-only" in _cause(error) or "readonly" in _cause(error) else "can't be used"
        reason = " ".join(_without_password(_cause(error), storage).split())
        raise UserError(
            f"storage={shown(storage, folder)}: {what} ({reason}); name one that can be reached and written"
        ) from error


def _cause(error: BaseException) -> str:
    """What the database said, not what was wrapped around it."""
    while True:
        inner = getattr(error, "orig", None) or error.__cause__
        if inner is None:
            return str(error)
        error = inner


def _without_password(text: str, storage: str | None) -> str:
    if not is_journal(storage) and (password := make_url(storage).password):
        text = text.replace(str(password), "***")
    return text.replace("password=", "password: ")
