import pytest
import torch

from lit_tfm.nn.feed_forward import ACTIVATIONS, FeedForward

FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp_min(0),
    "relu2": lambda x: x.clamp_min(0) ** 2,
    "silu": lambda x: x * x.sigmoid(),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_feed_forward_is_the_formula(name, gated, bias):
    layer, x, act = FeedForward(6, 10, activation=name, gated=gated, bias=bias), torch.randn(2, 3, 6), FORMULAS[name]
    up = x @ layer.up.weight.T + (layer.up.bias if bias else 0)
    inner = act(up[..., :10]) * up[..., 10:] if gated else act(up)
    assert inner.shape == (2, 3, 10)
    torch.testing.assert_close(layer(x), inner @ layer.down.weight.T + (layer.down.bias if bias else 0))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_the_gradient_of_the_formula(name):
    x = torch.tensor([-3.0, -0.5, -0.0, 0.25, 1.0, 7.0], requires_grad=True)
    upstream = torch.randn(x.shape)
    ours, formula = (torch.autograd.grad(f(x), x, upstream)[0] for f in (ACTIVATIONS[name], FORMULAS[name]))
    torch.testing.assert_close(ours[x != 0], formula[x != 0])  # at 0 a bend has no slope
    assert ours.isfinite().all()
