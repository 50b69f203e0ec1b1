"""Running out of memory: told apart from every other error, whichever allocator it comes from."""

import errno
import gc
import re
import traceback

import torch

from lit_tfm.errors import UserError

NO_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|can't allocate memory|MemoryError|Cannot allocate memory|bad_alloc"
    r"|ALLOC_FAILED",
)


class OutOfMemory(UserError):
    """What was asked for does not fit; the message has its sizes. `rows`: examples of the micro-batch it was for."""

    def __init__(self, message: str, rows: int = 0) -> None:
        super().__init__(message)
        self.rows = rows


def ran_out(error: BaseException | None) -> BaseException | None:
    """The link of an exception's chain that says memory ran out: of the device, of the host, of a loader's process.

    torch's CPU allocator raises a plain RuntimeError, a file that can't be mapped an OSError.
    """
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return error
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return error
        if isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


def let_go(error: BaseException | None) -> None:
    """Give back what the frames of an exception still hold: the activations of the step that did not fit."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
