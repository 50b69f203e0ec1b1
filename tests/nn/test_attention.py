"""The fast path and its explicit twin are one function, for every position scheme, kind of mask and grouping."""

import pytest
import torch

from lit_tfm.nn.attention import Attention, attend, attend_explicit
from lit_tfm.nn.cache import LayerCache
from lit_tfm.nn.masks import Mask, cross_mask, self_mask
from lit_tfm.nn.positions import SCHEMES, positions

B, T, S, H, D, C = 3, 7, 5, 4, 6, 24


def scheme(name, causal):
    torch.manual_seed(7)
    made = positions(name, max_length=16, d_model=C, n_heads=H, head_dim=D, causal=causal)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def masks(kind):
    seen = torch.ones(B, T, dtype=torch.bool)
    seen[0, 5:] = False
    seen[1, :3] = False
    documents = torch.tensor([[0, 0, 1, 1, 1, 2, 2]] * B)
    return {
        "none": {},
        "padding": {"seen": seen},
        "documents": {"documents": documents},
        "both": {"seen": seen, "documents": documents},
    }[kind]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", ["none", "padding", "documents", "both"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_fast_path_equals_explicit_twin(name, causal, kind, kv_heads):
    made = scheme(name, causal)
    mask = self_mask(T, T, causal=causal, bias=made.bias(T, T), **masks(kind))
    layer = Attention(C, H, n_kv_heads=kv_heads, qk_norm=True)
    x = made.embed(torch.randn(B, T, C))
    fast, nothing = layer(x, mask=mask, positions=made)
    slow, weights = layer(x, mask=mask, positions=made, explicit=True)
    assert nothing is None
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
    if causal:
        assert weights.triu(1).abs().max() == 0


@pytest.mark.parametrize("kind", ["none", "padding", "documents"])
def test_gradients_of_the_twins_are_equal(kind):
    mask = self_mask(T, T, causal=True, **masks(kind))
    qkv = [torch.randn(B, heads, T, D, requires_grad=True) for heads in (H, 2, 2)]
    upstream = torch.randn(B, H, T, D)
    fast = torch.autograd.grad((attend(*qkv, mask) * upstream).sum(), qkv)
    slow = torch.autograd.grad((attend_explicit(*qkv, mask)[0] * upstream).sum(), qkv)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("qk_gain", [False, True])
def test_cross_attention_twins_are_equal_and_the_blind_get_zero(qk_gain):
    seen = torch.ones(B, S, dtype=torch.bool)
    seen[1] = False  # a memory of padding only
    mask = cross_mask(seen)
    layer = Attention(C, H, n_kv_heads=2, cross=True, qk_norm=True, qk_gain=qk_gain)
    x, memory = torch.randn(B, T, C), torch.randn(B, S, C)
    fast, _ = layer(x, memory, mask=mask)
    slow, weights = layer(x, memory, mask=mask, explicit=True)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    assert weights.shape == (B, H, T, S)
    assert fast[1].abs().max() == 0


def test_scale_multiplies_the_logits():
    qkv = [torch.randn(B, H, T, D) for _ in range(3)]
    expected = attend_explicit(qkv[0] * 0.3 * D**0.5, *qkv[1:], Mask())[0]
    torch.testing.assert_close(attend(*qkv, Mask(), scale=0.3), expected)
    torch.testing.assert_close(attend_explicit(*qkv, Mask(), scale=0.3)[0], expected)


def test_grouped_heads_share_their_keys_and_values_in_order():
    """Query heads 0 and 1 take key-value head 0, 2 and 3 take 1: checked against heads computed one by one."""
    q, k, v = torch.randn(B, 4, T, D), torch.randn(B, 2, T, D), torch.randn(B, 2, T, D)
    together = attend(q, k, v, Mask())
    for head in range(4):
        one = torch.softmax(q[:, head] @ k[:, head // 2].mT / D**0.5, -1) @ v[:, head // 2]
        torch.testing.assert_close(together[:, head], one)


def test_value_embeddings_are_added_times_a_learned_number_started_at_a_half():
    layer = Attention(C, H, n_kv_heads=2, value_embeddings=True)
    assert layer.value_gain.shape == (1,)  # FSDP2 refuses parameters without dimensions
    assert layer.value_gain.item() == 0.5
    x, rows = torch.randn(B, T, C), torch.randn(B, T, 2 * D)
    _, weights = layer(x, mask=Mask(), values=rows, explicit=True)
    without, _ = layer(x, mask=Mask(), values=torch.zeros_like(rows))
    added, _ = layer(x, mask=Mask(), values=rows)
    grouped = rows.view(B, T, 2, D).transpose(1, 2).repeat_interleave(2, dim=1)  # (B, H, T, D)
    expected = layer.output((weights @ (0.5 * grouped)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(added - without, expected, atol=1e-5, rtol=1e-5)


def test_qk_norm_makes_the_logits_blind_to_the_size_of_queries_and_keys():
    layer = Attention(C, H, qk_norm=True)
    x = torch.randn(B, T, C)
    _, before = layer(x, mask=Mask(), explicit=True)
    with torch.no_grad():
        layer.qkv.weight[: 2 * C] *= 50
    _, after = layer(x, mask=Mask(), explicit=True)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_gains_of_queries_and_keys_are_apart():
    layer = Attention(C, H, n_kv_heads=2, qk_norm=True, qk_gain=True)
    x = torch.randn(B, T, C)
    with torch.no_grad():
        layer.q_norm.weight.fill_(2.0)
        layer.k_norm.weight.fill_(0.5)
    gained, _ = layer(x, mask=Mask())
    with torch.no_grad():
        layer.q_norm.weight.fill_(1.0)
        layer.k_norm.weight.fill_(1.0)
    plain, _ = layer(x, mask=Mask())
    torch.testing.assert_close(gained, plain, atol=1e-5, rtol=1e-5)  # 2 x 0.5
    with torch.no_grad():
        layer.k_norm.weight.fill_(3.0)
    assert (layer(x, mask=Mask())[0] - plain).abs().max() > 1e-3


def test_memory_is_projected_once_into_the_cache():
    layer, cache = Attention(C, H, cross=True), LayerCache(8)
    x, memory = torch.randn(B, 1, C), torch.randn(B, S, C)
    first, _ = layer(x, memory, mask=Mask(), cache=cache)
    again, _ = layer(x, torch.full_like(memory, torch.nan), mask=Mask(), cache=cache)
    assert torch.equal(first, again)


def test_dropout_only_in_training():
    layer = Attention(C, H, dropout=0.5)
    x = torch.randn(B, T, C)
    assert not torch.equal(layer(x, mask=Mask())[0], layer(x, mask=Mask())[0])
    layer.eval()
    assert torch.equal(layer(x, mask=Mask())[0], layer(x, mask=Mask())[0])


@pytest.mark.parametrize("kind", ["none", "padding"])
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_drops_weights_and_on_the_average_changes_nothing(causal, kind):
    mask = self_mask(T, T, causal=causal, **masks(kind))
    queries, keys = torch.randn(B, H, T, D), torch.randn(B, 2, T, D)
    values = torch.eye(T).expand(B, 2, T, T)  # what comes out is the weights
    whole = attend(queries, keys, values, mask)
    draws = torch.stack([attend(queries, keys, values, mask, dropout=0.25) for _ in range(2000)])
    kept = draws != 0
    torch.testing.assert_close(draws[kept], (whole / 0.75).expand_as(draws)[kept], atol=1e-4, rtol=1e-4)
    assert abs(kept[:, whole > 0].double().mean().item() - 0.75) < 0.01
    torch.testing.assert_close(draws.mean(0), whole, atol=0.06, rtol=0)


@pytest.mark.parametrize("form", ["bool", "float"])
def test_the_blind_have_no_gradient_either(form):
    seen = torch.ones(B, S, dtype=torch.bool)
    seen[0] = False  # the first text's memory is all padding
    mask = (
        cross_mask(seen)
        if form == "bool"
        else Mask(torch.zeros(B, 1, 1, S).masked_fill(~seen[:, None, None], -torch.inf))
    )
    qkv = [torch.randn(B, H, length, D, requires_grad=True) for length in (T, S, S)]
    for dropout in (0.0, 0.5):
        out = attend(*qkv, mask, dropout=dropout)
        assert out[0].abs().max() == 0
        for gradient in torch.autograd.grad(out.square().sum(), qkv):
            assert gradient[0].abs().max() == 0
            assert gradient.isfinite().all()
            assert gradient[1:].abs().max() > 0
