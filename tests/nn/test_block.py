import pytest
import torch

from lit_tfm.nn.block import Block
from lit_tfm.nn.init import init_weights
from lit_tfm.nn.masks import Mask


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("norm_position", "zero"), [("pre", True), ("rezero", True), ("rezero", False)])
def test_a_block_starts_as_the_identity(norm_position, zero, gated, cross):
    block = Block(16, 4, 32, cross=cross, norm_position=norm_position, gated=gated, bias=True, norm_weight=True)
    init_weights(block, std=None, zero_residual=zero)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    out, _, _ = block(x, memory, mask=Mask(), memory_mask=Mask())
    assert torch.equal(out, x)
    init_weights(block, std=0.1, zero_residual=False)
    if norm_position == "pre":
        assert not torch.equal(block(x, memory, mask=Mask(), memory_mask=Mask())[0], x)


def test_every_part_of_a_block_takes_part():
    block = Block(16, 4, 32, cross=True, norm_weight=True, qk_norm=True, value_embeddings=True, bias=True)
    init_weights(block, std=0.2, zero_residual=False)
    x, memory, values = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    block(x, memory, mask=Mask(), memory_mask=Mask(), values=values)[0].square().sum().backward()
    for name, parameter in block.named_parameters():
        # A key's bias shifts all logits of a query alike only without QK-norm; with it, it matters.
        assert parameter.grad.abs().max() > 0, name


def test_weights_come_when_asked_for():
    block = Block(16, 4, 32, cross=True)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    assert block(x, memory, mask=Mask(), memory_mask=Mask())[1:] == (None, None)
    _, own, cross = block(x, memory, mask=Mask(), memory_mask=Mask(), explicit=True)
    assert own.shape == (2, 4, 5, 5)
    assert cross.shape == (2, 4, 5, 3)
