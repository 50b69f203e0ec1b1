"""What a disk answers, told apart from a defect: full, over quota, read-only, not allowed, broken."""

import errno
import os
import re

STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE}
RUST = re.compile(r"\(os error (\d+)\)")  # safetensors' way of saying it


def refusal(error: BaseException | None) -> str | None:
    """ "can't be written (No space left on device)", with the file where it is known; None for any other error."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := RUST.search(str(error))):
            number = int(found.group(1))
        if number in STORAGE:
            name = getattr(error, "filename", None)
            return f"{name or 'a file of the run'} can't be written ({os.strerror(number)})"
        error = error.__cause__ or error.__context__
    return None
