"""Mistakes a person can mend.

A verb prints a `UserError` as one line and exits with status 2; `HYDRA_FULL_ERROR=1` brings the traceback back.
Anything else that escapes is a defect of lit_tfm and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """One line for a person: what was given, what is allowed, what to type."""


def nearest(word: str, options: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the option spelled most like `word`, or "" when none is near."""
    close = get_close_matches(word, [str(option) for option in options], n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""
