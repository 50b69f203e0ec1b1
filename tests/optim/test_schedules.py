import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.errors import UserError
from lit_tfm.optim.schedules import constant, cosine, inverse_sqrt, linear, wsd

fraction = st.floats(0, 1)
short = st.floats(0.01, 0.5)
falling = [
    linear,
    cosine,
    wsd,
    lambda progress, **options: wsd(progress, shape="linear", **options),
    inverse_sqrt,
]


@pytest.mark.parametrize("schedule", falling)
@given(progress=st.floats(-0.5, 2), warmup=st.floats(0, 0.5), final=fraction)
def test_stays_in_bounds(schedule, progress, warmup, final):
    assert 0 <= schedule(progress, warmup=warmup, final=final) <= 1 + 1e-12


@pytest.mark.parametrize("schedule", falling)
@given(warmup=st.floats(0, 0.5), final=fraction)
def test_ends_at_final_and_stays_there(schedule, warmup, final):
    assert schedule(1.0, warmup=warmup, final=final) == pytest.approx(final, abs=1e-9)
    assert schedule(1.7, warmup=warmup, final=final) == pytest.approx(final, abs=1e-9)


@pytest.mark.parametrize("schedule", [*falling, constant])
@given(warmup=short)
def test_warms_up_in_a_straight_line_from_zero_to_the_peak(schedule, warmup):
    assert schedule(0.0, warmup=warmup) == 0
    assert schedule(warmup / 4, warmup=warmup) == pytest.approx(0.25 * schedule(warmup, warmup=warmup), rel=0.06)
    assert schedule(max(warmup, 0.05), warmup=warmup) > 0.7


@pytest.mark.parametrize("schedule", [*falling, constant])
def test_starts_at_the_peak_without_warmup(schedule):
    assert schedule(0.0, warmup=0.0) == 1


@pytest.mark.parametrize("schedule", [*falling, constant])
@given(warmup=short, place=fraction)
def test_is_continuous(schedule, warmup, place):
    step = 1e-9  # sqrt and the inverse square root are steep, not torn
    assert abs(schedule(place + step, warmup=warmup) - schedule(place, warmup=warmup)) < 1e-3


@pytest.mark.parametrize("schedule", [*falling, constant])
@given(warmup=st.floats(0, 0.4), places=st.tuples(fraction, fraction))
def test_falls_after_the_warmup(schedule, warmup, places):
    early, late = (warmup + place * (1 - warmup) for place in sorted(places))
    assert schedule(late, warmup=warmup) <= schedule(early, warmup=warmup) + 1e-12


def test_midway_values():
    assert linear(0.6, warmup=0.2) == pytest.approx(0.5)
    assert cosine(0.4, warmup=0.2) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert wsd(0.8, cooldown=0.2) == 1
    assert wsd(0.85, cooldown=0.2) == pytest.approx(0.5)
    assert wsd(0.85, cooldown=0.2, shape="linear") == pytest.approx(0.75)
    assert constant(0.5) == constant(1.0) == 1


@given(progress=fraction, warmup=st.floats(0.05, 0.5))
def test_inverse_sqrt_is_vaswanis_without_cooldown(progress, warmup):
    paper = min(progress**-0.5, progress * warmup**-1.5) * warmup**0.5 if progress > 0 else 0.0
    assert inverse_sqrt(progress, warmup=warmup, cooldown=0) == pytest.approx(paper, abs=1e-12)


def test_refuses_what_does_not_fit():
    with pytest.raises(UserError, match=r"warmup=0.6 and cooldown=0.5"):
        wsd(0.1, warmup=0.6, cooldown=0.5)
    with pytest.raises(UserError, match=r"did you mean 'linear'"):
        wsd(0.1, shape="linaer")
    with pytest.raises(UserError, match=r"cooldown=0.9"):
        inverse_sqrt(0.1, warmup=0.2, cooldown=0.9)
