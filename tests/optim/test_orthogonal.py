import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.optim.orthogonal import COEFFICIENTS, _direct, orthogonalize

side = st.integers(1, 40)


def singular_values(x):
    return torch.linalg.svdvals(x.double())


@pytest.mark.parametrize(("name", "low", "high"), [("jordan", 0.65, 1.25), ("polar_express", 0.85, 1.15)])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (2, 16, 64), (1, 96, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one(name, low, high, shape, dtype):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spectrum = torch.logspace(0, -1.5, min(shape[1:]))  # from 1 down to 0.03
    values = singular_values(orthogonalize((u * spectrum @ v).to(dtype), COEFFICIENTS[name]).float())
    assert low < values.min()
    assert values.max() < high


def test_polar_express_ends_nearer_to_one():
    torch.manual_seed(0)
    x = torch.randn(4, 48, 48)
    errors = {name: (singular_values(orthogonalize(x, c)) - 1).abs().mean() for name, c in COEFFICIENTS.items()}
    assert errors["polar_express"] < 0.6 * errors["jordan"]


@settings(deadline=None)
@given(count=st.integers(1, 3), rows=side, columns=side, seed=st.integers(0, 99), scale=st.sampled_from([1e-4, 1, 1e4]))
def test_gram_iteration_and_batches_equal_the_plain_loop_in_float64(count, rows, columns, seed, scale):
    torch.manual_seed(seed)
    x = torch.randn(count, rows, columns) * scale
    coefficients = COEFFICIENTS["jordan"]
    batch = orthogonalize(x, coefficients)
    for matrix, result in zip(x.double(), batch, strict=True):
        if rows > columns:
            expected = _direct(matrix.T[None], coefficients)[0].T
        else:
            expected = _direct(matrix[None], coefficients)[0]
        torch.testing.assert_close(result.double(), expected, atol=2e-3, rtol=0)


def test_keeps_the_singular_vectors():
    torch.manual_seed(0)
    x = torch.randn(1, 24, 12)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    mixed = u.mT @ orthogonalize(x, COEFFICIENTS["polar_express"]) @ v.mT  # diagonal if the vectors are kept
    torch.testing.assert_close(mixed, torch.eye(12)[None], atol=0.15, rtol=0)


def test_zero_stays_zero():
    for shape in [(2, 3, 3), (2, 8, 2)]:
        assert not orthogonalize(torch.zeros(shape), COEFFICIENTS["jordan"]).any()
