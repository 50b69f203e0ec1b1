"""Budgets: what may be typed, and the number by which trials of other batch sizes compare."""

import pytest

from lit_tfm.errors import UserError
from lit_tfm.tasks.budget import Budget, nominal


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90, "seconds"),
        ("10m", 600, "seconds"),
        ("1.5h", 5400, "seconds"),
        (45, 45, "seconds"),
        ("2e6 tokens", 2e6, "tokens"),
        ("2e+6tokens", 2e6, "tokens"),
        ("1 token", 1, "tokens"),
        ("1e13 flops", 1e13, "flops"),
        ("1.5e13 FLOPs", 1.5e13, "flops"),
    ],
)
def test_forms(text, amount, unit) -> None:
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["soon", "0s", "0 tokens", "-5m", "2e6 words", "tokens", "1e13flops/s", ""])
def test_what_is_none_of_the_forms_is_told_them(text) -> None:
    with pytest.raises(UserError, match=r"trial_budget=.*90s, 10m, 1.5h, '2e6 tokens', '1e13 flops', auto or null"):
        Budget.parse(text, "trial_budget")


def test_a_share_is_a_whole_number_that_grows_with_it_and_fits_32_bits() -> None:
    assert Budget(2e6, "tokens").nominal(0.1) == 200_000
    assert Budget(90, "seconds").nominal(1 / 3) == 30_000  # milliseconds
    assert Budget(1e13, "flops").nominal(0.25) == 2_500_000  # millions
    assert nominal(0.3, None) == 300  # thousandths of the run
    for amount in (1, 1e3, 2.2e9, 7e17, 1e24):
        for unit in ("seconds", "tokens", "flops"):
            steps = [Budget(amount, unit).nominal(share) for share in (0.0, 0.5, 1.0)]
            assert steps == sorted(steps)
            assert steps[-1] < 2**31


def test_multiples_of_a_rung_are_never_beyond_the_rung_of_the_multiple() -> None:
    for amount in (76_801, 1e6, 999_999.5, 41_472):
        budget = Budget(amount, "tokens")
        assert 3 * budget.nominal(1 / 9) <= budget.nominal(1 / 3)
        assert 9 * budget.nominal(1 / 9) <= budget.nominal(1.0)
    assert nominal(0.57, None) == 570
    assert Budget(100, "tokens").nominal(0.57) == 57
