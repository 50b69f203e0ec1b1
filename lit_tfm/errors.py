"""Mistakes a person can mend.

A verb prints a `UserError` as one line and exits with status 2; `HYDRA_FULL_ERROR=1` brings the traceback back.
Anything else that escapes is a defect of lit_tfm and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches

# Exit statuses beside 0, 1 (a defect), 2 and 128 + the number of a signal; docs/reliability.md has the table.
TIME_IS_UP = 75  # time_limit: saved, and to be started again (sysexits.h: EX_TEMPFAIL)
HUNG = 124  # watchdog: as of timeout(1)


class UserError(Exception):
    """One line for a person: what was given, what is allowed, what to type."""

    def __init__(self, message: str = "", status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def nearest(word: object, options: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the option spelled most like `word`, or "" when none is near."""
    close = get_close_matches(str(word), [str(option) for option in options], n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""
