"""Every option of the config reaches the model: a switch that changes nothing is a lie."""

from dataclasses import fields

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from lit_tfm.models.config import TransformerConfig
from lit_tfm.nn.cache import KVCache

BASE = {"d_ff": 32, "n_kv_heads": 4}
# Option -> another value, and what has to stand beside it for the value to matter.
CHANGES = {
    "vocab_size": (31, {}),
    "d_model": (32, {}),
    "n_layers": (3, {}),
    "n_heads": (2, {"n_kv_heads": None}),
    "n_kv_heads": (2, {}),
    "head_dim": (8, {}),
    "d_ff": (48, {}),
    "n_segments": (2, {}),
    "positions": ("alibi", {}),
    "rotary_base": (100.0, {}),
    "position_buckets": (16, {"positions": "t5"}),
    "position_max_distance": (20, {"positions": "t5"}),
    "norm": ("layer", {}),
    "norm_weight": (True, {}),
    "norm_position": ("post", {}),
    "norm_eps": (0.5, {}),
    "embedding_norm": (False, {}),
    "scale_embeddings": (True, {"positions": "learned", "init_std": 0.1}),
    "activation": ("gelu", {}),
    "gated": (True, {}),
    "qk_norm": (False, {}),
    "attention_scale": (1.0, {}),
    "value_embeddings": (True, {}),
    "neighbours": (2, {}),
    "bias": (True, {}),
    "dropout": (0.5, {}),
    "tie_embeddings": (True, {"positions": "learned", "embedding_norm": False}),  # smaller rows
    "zero_init": (True, {}),
    "init_std": (0.3, {}),
    "depth_scaled_init": (True, {}),
}
ELSEWHERE = {
    "max_length": "test_architectures: beyond its positions",
    "n_decoder_layers": "test_encoder_decoder: sides may differ in depth",
    "softcap": "the head's: nn/test_heads",
    "activation_checkpointing": "test_architectures",
    "compile": "test_architectures",
    "packed_attention": "test_packed_attention: the result is the same",
}


def test_no_option_is_forgotten():
    assert CHANGES.keys() | ELSEWHERE.keys() == {field.name for field in fields(TransformerConfig)}


@pytest.mark.parametrize("option", CHANGES)
def test_the_option_changes_what_the_model_does(make, option):
    value, beside = CHANGES[option]
    tokens, outputs = torch.randint(0, 29, (2, 24)), []
    for change in ({}, {option: value}):
        torch.manual_seed(1)
        model = make("encoder", **{**BASE, **beside, **change}).train()
        torch.manual_seed(2)
        outputs.append(model.hidden(tokens))
    assert outputs[0].shape != outputs[1].shape or (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["attention", "cross_attention", "feed_forward", "embedding_norm", "norm"])
@pytest.mark.parametrize("option", [{"norm_eps": 0.5}, {"bias": True, "norm_weight": True, "norm": "layer"}])
def test_norms_and_biases_are_everywhere(make, part, option):
    decoder = make("encoder_decoder", **option).decoder
    block = decoder.blocks[0]
    if part in ("norm", "embedding_norm"):
        norms, linears = [getattr(decoder, part)], []
    else:
        road = {"attention": "attention", "cross_attention": "cross", "feed_forward": "feed_forward"}[part]
        norms = [getattr(block, f"{road}_residual").norm]
        linears = [m for m in getattr(block, part).modules() if isinstance(m, nn.Linear)]
    for norm in norms:
        assert norm.eps == option.get("norm_eps", 1e-6)
        assert (norm.bias is not None) == ("bias" in option)
    assert all((linear.bias is not None) == ("bias" in option) for linear in linears)


def test_dropout_is_at_the_embedding_the_weights_and_the_roads(make):
    stack = make("encoder_decoder", dropout=0.25).decoder
    block = stack.blocks[0]
    dropouts = [stack.dropout.p, block.attention.dropout, block.cross_attention.dropout]
    dropouts += [r.dropout.p for r in (block.attention_residual, block.cross_residual, block.feed_forward_residual)]
    assert dropouts == [0.25] * 6


def test_checkpointing_is_for_training_only(make, ids):
    model = make("decoder", activation_checkpointing=True).train()
    cache = KVCache(4)
    with torch.no_grad():
        one, two = model.hidden(ids(1, 3), cache=cache), model.hidden(ids(1, 1), cache=cache)
    assert one.shape == (1, 3, 24)
    assert two.shape == (1, 1, 24)


@torch.no_grad()
def test_decoding_with_a_cache_compiles_nothing(make, ids):
    """Every step has a length of its own: compiled, a sentence takes a minute."""
    model, plain = make("decoder", compile=True), make("decoder")
    plain.load_state_dict(model.state_dict())
    tokens, cache = ids(2, 8), KVCache(8)
    frames = sum(counters["frames"].values())
    pieces = [model.hidden(tokens[:, :4], cache=cache)]
    pieces += [model.hidden(tokens[:, i : i + 1], cache=cache) for i in range(4, 8)]
    assert sum(counters["frames"].values()) == frames
    torch.testing.assert_close(torch.cat(pieces, dim=1), plain.hidden(tokens), atol=1e-5, rtol=1e-5)


def test_embedded_tokens_are_dropped_out(make, ids):
    model, tokens = make("encoder").train(), ids(2, 6)
    assert torch.equal(model.hidden(tokens), model.hidden(tokens))
    model.dropout.p = 0.5
    assert not torch.equal(model.hidden(tokens), model.hidden(tokens))


@pytest.mark.parametrize("low", [False, True])
def test_a_float_mask_is_built_once_in_the_dtype_of_attention(make, ids, low):
    """Under autocast SDPA would cast a float32 mask again in every layer."""
    model, seen = make("decoder", positions="alibi"), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["mask"].tensor), with_kwargs=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        model.hidden(ids(2, 6))
    assert seen[0] is seen[1]
    assert seen[0].dtype == (torch.bfloat16 if low else torch.float32)
