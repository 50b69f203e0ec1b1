"""Dropout on a CPU: the share, the scale, the gradient and the independence of torch's, from the seed alone."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lit_tfm.nn.dropout import Dropout


def dropped(p: float, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(p)(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.1, 0.37, 0.5, 0.9])
def test_the_share_and_the_scale(p: float) -> None:
    out = dropped(p, 1001, 999)
    share = (out == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / out.numel()) ** 0.5 + 2**-17  # five standard errors, and the rounding
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - p)), rtol=1e-4)
    assert abs(out.double().mean().item() - 1) < 0.02


def test_neighbours_are_decided_apart() -> None:
    """Four come of one draw, rows lie behind each other: none says anything of another."""
    kept = (dropped(0.5, 4096, 64) != 0).double() - 0.5
    flat = kept.flatten()
    for apart in (1, 2, 3, 4, 5, 64):
        assert abs((flat[apart:] * flat[:-apart]).mean().item() * 4) < 5 / flat.numel() ** 0.5


def test_it_is_a_matter_of_the_seed_and_every_call_draws_anew() -> None:
    assert torch.equal(dropped(0.3, 7, 5), dropped(0.3, 7, 5))
    assert not torch.equal(dropped(0.3, 7, 5), dropped(0.3, 7, 5, seed=1))
    layer, x = Dropout(0.3), torch.ones(64)
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 0), (5, 3, 2)])
def test_any_shape_and_layout(shape) -> None:
    assert dropped(0.5, *shape).shape == shape
    turned = torch.ones(6, 4).mT
    assert Dropout(0.5)(turned).shape == (4, 6)


def test_the_gradient_is_what_was_kept() -> None:
    x = torch.randn(50, 8, requires_grad=True)
    torch.manual_seed(0)
    out = Dropout(0.25)(x)
    out.sum().backward()
    assert torch.equal(x.grad * x.detach(), out.detach())


def test_a_block_computed_again_drops_the_same() -> None:
    layer, x = Dropout(0.5), torch.randn(40, 4, requires_grad=True)
    out = checkpoint(lambda value: layer(value) ** 2, x, use_reentrant=False)
    out.sum().backward()
    assert torch.equal(x.grad == 0, out == 0)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_and_all(p: float) -> None:
    assert torch.equal(dropped(p, 9), torch.full((9,), 1 - p))


def test_it_keeps_the_dtype_and_rests_in_evaluation() -> None:
    assert dropped(0.5, 9, dtype=torch.bfloat16).dtype == torch.bfloat16
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x or torch.equal(Dropout(0.5).eval()(x), x)
