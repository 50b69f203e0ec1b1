"""When a run validates: at shares of it, at steps, and at the rungs of a sweep, also after a resume."""

import pytest

from lit_tfm.callbacks.pace import Pace


def due(pace: Pace, steps: int, begin: int = 0) -> list[int]:
    pace._done = pace._passed(begin / steps)
    return [step for step in range(begin + 1, steps + 1) if pace._due(step, step / steps)]


@pytest.mark.parametrize(
    ("val_every", "rungs", "expected"),
    [
        (0.25, (), [5, 10, 15, 20]),
        (0.3, (), [6, 12, 18]),
        (8, (), [8, 16]),
        (1.0, (0.5, 0.1), [*range(1, 21)]),
        (0.999, (0.5, 0.1), [2, 10, 20]),
        (0.5, (0.5, 0.26), [6, 10, 20]),
        (8, (0.05, 0.4), [1, 8, 16]),
    ],
)
def test_validations_of_twenty_steps(val_every, rungs, expected) -> None:
    assert due(Pace(val_every, rungs), 20) == expected


def test_a_resumed_run_validates_where_the_whole_one_does() -> None:
    for begin in range(20):
        assert due(Pace(0.15, (0.33, 0.61)), 20, begin) == [n for n in due(Pace(0.15, (0.33, 0.61)), 20) if n > begin]
