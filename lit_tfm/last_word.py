"""The last word of a run of several processes: why it ended, from the rank that knew first.

When one rank fails, the others fail after it, at an exchange that it no longer takes part in. What they have to say
is noise. So a rank leaves its reason in the run folder if no other has, and the process that started them all reads
it, tells it once, and ends with its status.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = ".last_word"


@dataclass(frozen=True)
class LastWord:
    """`kind`: refused, memory, failed or hung. `trace` is empty where the message says all there is."""

    kind: str
    message: str
    status: int
    rank: int
    trace: str = ""
    rows: int = 0  # of the micro-batch that did not fit


def leave(folder: Path, word: LastWord) -> bool:
    """Whether it was the first. Whole or not at all: linked under its name when it is written."""
    draft = folder / f"{FILE}.{os.getpid()}"
    try:
        draft.write_text(json.dumps(asdict(word)), encoding="utf-8")
        os.link(draft, folder / FILE)
        return True
    except OSError:  # there is one already, or nothing can be written
        return False
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def heard(folder: Path) -> LastWord | None:
    """The word of the first rank that failed, if one did."""
    try:
        return LastWord(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def forget(folder: Path) -> None:
    (folder / FILE).unlink(missing_ok=True)
