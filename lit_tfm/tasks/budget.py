"""The budget of a run: `90s`, `2e6 tokens`, `1e13 flops`. Imports no torch: a sweep reads budgets before it trains.

Seconds are those of training. Tokens are the non-padding input tokens of all ranks. FLOPs are tokens times the task's
FLOPs per token, so a larger model gets fewer of them.
"""

import re
from dataclasses import dataclass

from lit_tfm.errors import UserError

FORMS = "90s, 10m, 1.5h, '2e6 tokens', '1e13 flops', auto or null"
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_WRITTEN = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*(s|m|h|tokens?|flops?)?", re.IGNORECASE)
ROUNDING = 1e-6  # 0.57 * 100 is 56.99999999999999
_LARGEST = 2**31 - 1  # of a step, in the column of Optuna's PostgreSQL table


@dataclass(frozen=True)
class Budget:
    """An amount and its unit: seconds, tokens or flops."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str | int | float, key: str = "budget") -> "Budget":
        """Raises UserError, naming `key`, where `text` is none of the forms. A bare number is seconds."""
        found = _WRITTEN.fullmatch(str(text).strip())
        if not found or float(found.group(1)) == 0:
            raise UserError(f"{key}={text}: neither a time nor an amount of work; type one of {FORMS}")
        amount, unit = float(found.group(1)), (found.group(2) or "").lower()
        if unit in _SECONDS:
            return cls(amount * _SECONDS[unit], "seconds")
        return cls(amount, "tokens" if unit.startswith("token") else "flops")

    def nominal(self, share: float) -> int:
        """This share of the budget as a whole number, the same in all trials of a sweep whatever their batch size.

        In tokens, FLOPs or milliseconds, or in thousands of them (of thousands ...) where the whole budget would not
        fit 32 bits. Rounded down, so that three times a third's number is never more than the whole's: the rungs of
        successive halving are multiples of the first.
        """
        amount = self.amount * (1000 if self.unit == "seconds" else 1)
        while amount > _LARGEST:
            amount /= 1000
        return int(share * amount + ROUNDING)


def seconds(text: str | int | float | None, key: str) -> float | None:
    """A time, null or 0 for none. Raises UserError, naming `key`, for anything else."""
    if text in (None, 0, "0"):
        return None
    asked = Budget.parse(text, key) if _WRITTEN.fullmatch(str(text).strip()) else None
    if asked is None or asked.unit != "seconds":
        raise UserError(f"{key}={text}: not a time; type one of 90s, 10m, 1.5h or null")
    return asked.amount


def nominal(share: float, budget: Budget | None) -> int:
    """A share of the run as a whole number: of its budget, or thousandths of the run where it has none."""
    return budget.nominal(share) if budget is not None else int(1000 * share + ROUNDING)
