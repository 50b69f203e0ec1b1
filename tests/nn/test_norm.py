import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_tfm.nn.norm import Norm, Residual, rms_norm


def test_rms_is_the_formula():
    x = torch.randn(3, 8)
    norm = Norm(8, "rms", weight=True, bias=True, eps=1e-6)
    assert norm.bias is None  # RMS norm has no shift
    nn.init.uniform_(norm.weight)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight)


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("layout", ["whole", "strided", "one row", "no rows", "zeros"])
def test_rms_and_its_gradients_are_those_of_torch(gain, layout):
    x = {
        "whole": torch.randn(3, 4, 16) * torch.logspace(-4, 4, 12).reshape(3, 4, 1),
        "strided": torch.randn(3, 24, 4).transpose(1, 2)[..., 5:21],
        "one row": torch.randn(16),
        "no rows": torch.randn(0, 16),
        "zeros": torch.zeros(2, 16),
    }[layout].requires_grad_()
    weight = torch.randn(16, requires_grad=True) if gain else None
    upstream, wanted = torch.randn(x.shape), [x, weight] if gain else [x]
    ours, torchs = rms_norm(x, weight, 1e-6), F.rms_norm(x, (16,), weight, 1e-6)
    torch.testing.assert_close(ours, torchs)
    for one, other in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (ours, torchs)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("weight", "bias"), [(False, False), (False, True), (True, False), (True, True)])
def test_layer_is_the_formula(weight, bias):
    x = torch.randn(3, 8)
    norm = Norm(8, "layer", weight=weight, bias=bias, eps=1e-5)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    expected = expected * norm.weight if weight else expected
    expected = expected + norm.bias if weight and bias else expected
    torch.testing.assert_close(norm(x), expected)
    assert len(list(norm.parameters())) == (2 if weight and bias else int(weight))


def test_roads_are_the_formulas():
    x, norm, f = torch.randn(2, 3, 8), Norm(8, "rms"), nn.Linear(8, 8)

    def through(position):
        road = Residual(norm, position)
        return road, road.leave(x, f(road.enter(x)))

    torch.testing.assert_close(through("pre")[1], x + f(norm(x)))
    torch.testing.assert_close(through("post")[1], norm(x + f(x)))
    road, out = through("rezero")
    assert torch.equal(out, x)
    assert road.gain.shape == (1,)  # FSDP2 refuses parameters without dimensions
    nn.init.constant_(road.gain, 0.3)
    torch.testing.assert_close(road.leave(x, f(road.enter(x))), x + 0.3 * f(x))


def test_dropout_falls_on_the_change_not_on_the_stream():
    road = Residual(Norm(8), "pre", dropout=0.5)
    x, change = torch.ones(64, 8), torch.full((64, 8), 10.0)
    values = set(road.leave(x, change).unique().tolist())
    assert values == {1.0, 21.0}
    assert torch.equal(road.eval().leave(x, change), x + change)
