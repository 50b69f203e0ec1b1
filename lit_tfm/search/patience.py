"""A storage that may be away for a while: a database that is restarted, a disk that is full.

Trials that run are worth more than a minute of waiting. What was told to a storage that went away before it answered is
told again; that may leave a trial claimed by nobody, which is taken over like any other that was lost.
"""

import errno
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

from lit_tfm.errors import UserError
from lit_tfm.search.storage import connect

AWAY = 600.0  # seconds
PAUSE = 1.0
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}


class Patient:
    """Repeats every call until the storage answers, or has been away too long."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if not callable(found):
            return found

        @wraps(found)
        def call(*values: Any, **named: Any) -> Any:
            return patiently(lambda: found(*values, **named))

        return call


def patiently(call: Callable[[], Any]) -> Any:
    until = time.monotonic() + AWAY
    while True:
        try:
            return call()
        except Exception as error:
            if not away(error) or time.monotonic() > until:
                raise
            print(f"the storage is away ({' '.join(str(error).split())[:200]}); waiting", flush=True)
            time.sleep(PAUSE)


def away(error: BaseException | None) -> bool:
    """Whether the storage is gone for now, rather than asked for something it can't do."""
    while error is not None:
        if isinstance(error, (OperationalError, InterfaceError, PendingRollbackError)):
            return True
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def connect_patiently(storage: str | None, folder: Path) -> Patient:
    """For a worker, whose supervisor has reached the storage before."""

    def reach() -> BaseStorage:
        try:
            return connect(storage, folder)
        except UserError as error:
            raise error.__cause__ or error from None

    return Patient(patiently(reach))
