"""Who has a run's folder: two processes never train in one.

The lock is the kernel's, on RUN/.lock: it is gone with the last process that holds it, however that one ends. Who
begins must have had the folder alone first, and then shares it with the processes it starts.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lit_tfm.errors import UserError

LOCK = ".lock"
PATIENCE = 10.0  # seconds that what a dead process has started is given to notice, and to end


@dataclass(eq=False)
class Hold:
    """This process's part in a folder's lock. `handle` is None where the file system has no locks."""

    file: Path
    handle: int | None
    joined: bool = False  # to another process, which has the folder; the file is that one's

    def close(self) -> None:
        """Who took the folder removes the file, unless somebody it shared with goes on."""
        if self.handle is None:
            return
        if not self.joined:
            with contextlib.suppress(OSError):
                alone = _lock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is(self.handle, self.file)
                self.file.unlink() if alone else os.ftruncate(self.handle, 0)
        os.close(self.handle)
        self.handle = None
        _holds.remove(self)


_holds: list[Hold] = []  # of this process


def _leave() -> None:
    """In a fork, such as a loader's worker: it writes nothing there, and may live a little longer."""
    for hold in _holds:
        os.close(hold.handle)
        hold.handle = None
    _holds.clear()


os.register_at_fork(after_in_child=_leave)


# ---- taking and sharing ----------------------------------------------------------------------------------------


def take(folder: Path) -> Hold:
    """The folder for this process and those that `share` it. Raises UserError where another process trains there.

    Where that one is dead and only what it had started goes on, this is given `PATIENCE` to end. A process that shares
    the folder already, such as a trial's, has it.
    """
    file, began = folder / LOCK, time.monotonic()
    for hold in _holds:
        if hold.joined and _is(hold.handle, file):
            return _kept(Hold(file, os.dup(hold.handle), joined=True))
    while (hold := take_at_once(folder)) is None:
        if _alive(_record(file)) or time.monotonic() - began > PATIENCE:
            raise UserError(
                f"{folder} is being trained by another process{_whose(file)}; wait for its end or end it, or name "
                "another folder"
            )
        time.sleep(0.05)
    return hold


def take_at_once(folder: Path) -> Hold | None:
    """The same without patience: None where somebody holds it."""
    file = folder / LOCK
    handle = _open(file, os.O_CREAT)
    if handle is None:
        return Hold(file, None)
    try:
        if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is(handle, file):
            _sign(handle)
            # Not in one step: somebody else may have been quicker.
            if _lock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB):
                return _kept(Hold(file, handle))
        os.close(handle)
        return None
    except OSError:  # a file system without locks
        os.close(handle)
        return Hold(file, None)


def share(folder: Path) -> Hold:
    """Join those who have the folder."""
    file = folder / LOCK
    while (handle := _open(file, os.O_CREAT)) is not None:
        try:
            _lock(handle, fcntl.LOCK_SH)
        except OSError:
            os.close(handle)
            break
        if _is(handle, file):
            return _kept(Hold(file, handle, joined=True))
        os.close(handle)  # its holder has removed it meanwhile
    return Hold(file, None)


def held(folder: Path) -> bool:
    """Whether a process trains there that is not known to be dead."""
    file = folder / LOCK
    handle = _open(file)
    if handle is None:
        return False
    try:
        free = _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    record = _record(file)
    return not free and (record.get("machine") != machine() or _alive(record))


def _kept(hold: Hold) -> Hold:
    _holds.append(hold)
    return hold


def _open(file: Path, flags: int = 0) -> int | None:
    """None where it can't be opened. A link there is not followed: what it leads to would be written."""
    for mode in (os.O_RDWR | flags, os.O_RDONLY):  # another user's, or a disk that can only be read
        with contextlib.suppress(OSError):
            return os.open(file, mode | os.O_NOFOLLOW, 0o666)
    return None


def _lock(handle: int, how: int) -> bool:
    """Raises OSError where there are no locks."""
    try:
        fcntl.flock(handle, how)
        return True
    except BlockingIOError:
        return False


def _is(handle: int, file: Path) -> bool:
    """Whether the file of that name is still the one that was opened."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except OSError:
        return False


# ---- who it is -------------------------------------------------------------------------------------------------


def _sign(handle: int) -> None:
    """Write down who took the folder; on a full disk nobody is told."""
    record = {"pid": os.getpid(), "birth": birth(os.getpid()), "machine": machine(), "host": socket.gethostname()}
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(record).encode(), 0)


def _record(file: Path) -> dict[str, Any]:
    """{} where the file does not say."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return record if isinstance(record["pid"], int) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _alive(record: dict[str, Any]) -> bool:
    """Whether the process is one of this machine, and lives."""
    return record.get("machine") == machine() and birth(record["pid"]) == record.get("birth") is not None


def _whose(file: Path) -> str:
    """` (process 12 on gauss)`: those of this machine as its kernel knows them, else the one that signed the file."""
    record = _record(file)
    known = [record["pid"]] if _alive(record) else [pid for pid in _lockers(file) if birth(pid) is not None]
    if known:
        return f" ({'process' if len(known) == 1 else 'processes'} {', '.join(map(str, known))} on this machine)"
    return f" (process {record['pid']} on {record.get('host')})" if record else ""


def _lockers(file: Path) -> list[int]:
    """Processes of this machine that have locked the file themselves (Linux)."""
    try:
        inode, lines = file.stat().st_ino, Path("/proc/locks").read_text()
    except OSError:
        return []
    return sorted({int(pid) for pid in re.findall(rf"FLOCK +ADVISORY +\w+ +(\d+) +\w+:\w+:{inode} ", lines)})


def machine() -> str:
    """This machine, this boot, this container: where a process id means something."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    since = boot.read_text().strip()[:8] if boot.exists() else f"{psutil.boot_time():.0f}"
    return f"{socket.gethostname()}/{since}/{os.readlink(space)[5:-1] if space.exists() else ''}"


def birth(pid: int) -> float | None:
    """When the process started, in the kernel's ticks; None where there is none (any more)."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return float(numbers[18]) if state not in "ZX" else None
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return None
    except (ProcessLookupError, PermissionError):
        return None
    try:
        process = psutil.Process(pid)
        return process.create_time() if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
