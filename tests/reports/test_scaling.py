"""Scaling laws: a known law is found again, and the interval holds it as often as it says."""

import io

import numpy as np
import pytest

from lit_tfm.errors import UserError
from lit_tfm.reports.reading import Run
from lit_tfm.reports.scaling import draw, fit, points

COMPUTE = np.geomspace(1e12, 1e14, 5)


@pytest.mark.parametrize(
    ("a", "b", "floor"), [(50.0, 0.1, 0.0), (2000.0, 0.25, 1.7), (1e6, 0.5, 0.3), (3.0, 0.02, 0.0)]
)
def test_a_law_without_noise_is_found_again(a, b, floor):
    law = fit(COMPUTE, floor + a * COMPUTE**-b, floor=floor > 0)
    assert law.b == pytest.approx(b, rel=0.01)
    assert law.floor == pytest.approx(floor, rel=0.01)
    np.testing.assert_allclose(law(COMPUTE), floor + a * COMPUTE**-b, rtol=1e-4)
    assert law(1e15) == pytest.approx(floor + a * 1e15**-b, rel=0.01)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = []
    for _ in range(100):
        loss = 50.0 * COMPUTE**-0.1 * np.exp(0.01 * random.standard_normal(5))
        low, high = fit(COMPUTE, loss, floor=False).interval("b", 0.9)
        held.append(low <= 0.1 <= high)
    assert 0.8 <= np.mean(held) <= 0.98


def test_more_noise_or_fewer_runs_make_a_wider_interval():
    noise = np.random.default_rng(1).standard_normal(12)
    many = np.geomspace(1e12, 1e14, 12)

    def width(compute, size):
        low, high = fit(compute, 50.0 * compute**-0.1 * np.exp(size * noise[: len(compute)]), floor=False).interval("b")
        return high - low

    assert width(many, 0.001) < width(many, 0.01) < width(many, 0.05)
    assert width(many[:4], 0.01) > 2 * width(many, 0.01)


def test_the_band_opens_beyond_the_data_and_the_same_data_give_the_same_numbers():
    noise = np.exp(0.005 * np.random.default_rng(2).standard_normal(5))
    loss = (1.7 + 2000 * COMPUTE**-0.25) * noise
    one, two = fit(COMPUTE, loss), fit(COMPUTE, loss)
    assert (one.b, one.interval("b")) == (two.b, two.interval("b"))
    low, high = one.band(np.array([1e13, 1e16]))
    assert (low < one(np.array([1e13, 1e16]))).all()
    assert (high - low)[1] > 2 * (high - low)[0]
    draw(one, COMPUTE, loss).savefig(file := io.BytesIO(), format="rgba")
    assert np.ptp(np.frombuffer(file.getvalue(), dtype=np.uint8)) > 0
    assert "b = " in str(one)
    assert "floor = " in str(one)


@pytest.mark.parametrize(
    ("compute", "loss", "told"),
    [
        ([1, 2, 3], [3, 2, 1], "needs more than 3 runs"),
        ([5, 5, 5, 5], [3, 2, 1, 4], "same compute"),
        ([1, 2, 3, 4], [3, float("nan"), 1, 1], "loss has values that are not above 0"),
        ([1, 0, 3, 4], [3, 2, 1, 1], "compute has values that are not above 0"),
    ],
)
def test_data_without_a_law_are_told_in_one_line(compute, loss, told):
    with pytest.raises(UserError, match=told):
        fit(compute, loss)


def test_points_are_those_of_the_runs_that_say_both(tmp_path):
    big = Run(tmp_path, tokens=1000, flops_per_token=2e6, best={"val/loss": 2.0})
    small = Run(tmp_path, tokens=500, flops_per_token=1e6, best={"val/loss": 3.0})
    failed = Run(tmp_path, tokens=10, flops_per_token=1e6)
    compute, loss = points([big, failed, small])
    assert compute.tolist() == [5e8, 2e9]
    assert loss.tolist() == [3.0, 2.0]
    with pytest.raises(UserError, match="none of 1 runs"):
        points([failed])
