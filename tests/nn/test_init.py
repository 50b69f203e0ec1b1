import pytest
import torch
from torch import nn

from lit_tfm.nn.attention import Attention
from lit_tfm.nn.block import Block
from lit_tfm.nn.init import init_weights


def deviation(weight):
    return weight.std().item()


def test_fan_in_family():
    block = Block(256, 4, 1024, qk_norm=True)
    init_weights(block, std=None, zero_residual=False)
    assert deviation(block.attention.qkv.weight) == pytest.approx(256**-0.5, rel=0.05)
    assert deviation(block.feed_forward.down.weight) == pytest.approx(1024**-0.5, rel=0.05)
    init_weights(block, std=None, zero_residual=True)
    assert block.attention.output.weight.abs().max() == 0
    assert block.feed_forward.down.weight.abs().max() == 0
    assert deviation(block.feed_forward.up.weight) == pytest.approx(256**-0.5, rel=0.05)


def test_gpt2_family_divides_by_the_root_of_the_residual_layers():
    blocks = nn.ModuleList(Block(256, 4, 1024, bias=True) for _ in range(3))
    init_weights(blocks, std=0.02, zero_residual=False, depth_scaled=True)
    for block in blocks:
        assert deviation(block.attention.qkv.weight) == pytest.approx(0.02, rel=0.05)
        for last in (block.attention.output, block.feed_forward.down):
            assert deviation(last.weight) == pytest.approx(0.02 / 6**0.5, rel=0.05)
            assert last.bias.abs().max() == 0


@pytest.mark.parametrize("cross", [False, True])
def test_t5_logits_start_as_if_they_were_scaled(cross):
    layer = Attention(512, 8, cross=cross, scale=1.0)
    init_weights(layer, std=None, zero_residual=False)
    queries = layer.q.weight if cross else layer.qkv.weight[:512]
    others = layer.kv.weight if cross else layer.qkv.weight[512:]
    assert deviation(queries) == pytest.approx((512 * 64) ** -0.5, rel=0.05)
    assert deviation(others) == pytest.approx(512**-0.5, rel=0.05)


def test_nothing_of_what_was_there_stays():
    block = Block(
        16, 4, 32, cross=True, norm="layer", norm_weight=True, norm_position="rezero", qk_norm=True, bias=True
    )
    block = nn.ModuleList([block, Block(16, 4, 32, norm="layer", norm_weight=True, value_embeddings=True)])
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
    init_weights(block, std=None, zero_residual=True)
    assert all(parameter.isfinite().all() for parameter in block.parameters())
    assert block[1].attention.value_gain.item() == 0.5
    assert block[1].attention_residual.norm.weight.mean() == 1
    assert block[0].cross_residual.gain.item() == 0
