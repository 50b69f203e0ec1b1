"""Putting a finished file or folder where another stands, so that at no instant there is only half of one.

Imports no torch: run folders are listed by what does not need it.
"""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

SHARDS = "shards.json"  # in a folder that is a checkpoint


def is_sharded(path: Path) -> bool:
    """Whether the path is a checkpoint in shards, which is a folder."""
    return (path / SHARDS).is_file()


def open_new(path: Path) -> BinaryIO:
    """For writing under a temporary name, in place of what a crash left there; a link there is not followed."""
    remove(path)
    return open(path, "xb")


def put(temporary: Path, final: Path) -> None:
    """Rename over `final`. A folder can't be replaced in one go: it steps aside (`.NAME.old`) and is removed after."""
    aside = final.with_name(f".{final.name}.old")
    remove(aside)
    if final.exists() and (final.is_dir() or temporary.is_dir()):
        os.replace(final, aside)
    os.replace(temporary, final)
    remove(aside)


def remove(path: Path) -> None:
    """A file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make what was written to a file last through a power cut. Before it is renamed, or its name may outlive it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in it last through a power cut. Some file systems have no such thing, and need none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def disk_error(error: BaseException | None) -> OSError | None:
    """What the disk answered: torch.save buries it under a RuntimeError about positions in its archive.

    Only where it writes to an open file; given a path, it writes with C++, which forgets the answer.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
