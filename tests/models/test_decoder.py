"""Decoding with a cache equals reading the whole text at once."""

import pytest
import torch

from lit_tfm.errors import UserError
from lit_tfm.nn.cache import KVCache
from lit_tfm.nn.positions import SCHEMES

RICH = {"neighbours": 2, "n_kv_heads": 2, "value_embeddings": True, "norm_weight": True, "bias": True}


def stepwise(model, tokens, steps, mask=None):
    """The hidden states, in pieces of the lengths `steps`."""
    cache, pieces, at = KVCache(tokens.size(1)), [], 0
    for step in steps:
        part = None if mask is None else mask[:, at : at + step]
        pieces.append(model.hidden(tokens[:, at : at + step], attention_mask=part, cache=cache))
        at += step
    assert cache.length == tokens.size(1)
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("steps", [(1,) * 9, (5, 1, 1, 1, 1), (3, 4, 2), (9,)])
@pytest.mark.parametrize("name", SCHEMES)
@torch.no_grad()
def test_cached_equals_uncached(make, ids, name, steps):
    model, tokens = make("decoder", positions=name, **RICH), ids(2, 9)
    torch.testing.assert_close(stepwise(model, tokens, steps), model.hidden(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SCHEMES)
@torch.no_grad()
def test_prompts_of_several_lengths_are_padded_on_the_left(make, ids, name):
    model, tokens = make("decoder", positions=name, **RICH), ids(3, 9)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, :2], mask[2, :4] = False, False
    cache = KVCache(9)
    model.hidden(tokens[:, :6], attention_mask=mask[:, :6], cache=cache)
    last = [model.hidden(tokens[:, i : i + 1], cache=cache) for i in range(6, 9)]  # later steps need no mask
    for row, padding in enumerate((0, 2, 4)):
        alone = model.hidden(tokens[row : row + 1, padding:])[0, -3:]
        torch.testing.assert_close(torch.cat(last, dim=1)[row], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_reordered_cache_goes_on_with_the_other_text(make, ids):
    model, tokens, rows = make("decoder", **RICH), ids(2, 5), torch.tensor([1, 0, 1])
    cache = KVCache(5)
    model.hidden(tokens[:, :4], cache=cache)
    cache.reorder(rows)
    swapped = torch.cat((tokens[rows, :4], tokens[:1, 4:].expand(3, 1)), dim=1)
    torch.testing.assert_close(
        model.hidden(swapped[:, 4:], cache=cache)[:, 0], model.hidden(swapped)[:, 4], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_a_truncated_cache_has_forgotten(make, ids):
    model, tokens = make("decoder", **RICH), ids(2, 6)
    cache = KVCache(8)
    model.hidden(torch.cat((tokens[:, :3], ids(2, 4)), dim=1), cache=cache)
    cache.truncate(3)
    torch.testing.assert_close(
        model.hidden(tokens[:, 3:], cache=cache), model.hidden(tokens)[:, 3:], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_a_cache_longer_than_the_positions_does_not_lead_beyond_them(make, ids):
    model, cache = make("decoder", max_length=8), KVCache(12)
    model.hidden(ids(1, 7), cache=cache)
    model.hidden(ids(1, 1), cache=cache)
    with pytest.raises(UserError, match="9 tokens"):
        model.hidden(ids(1, 1), cache=cache)


def test_documents_do_not_go_on_from_a_cache(make, ids):
    model, cache = make("decoder"), KVCache(8)
    model.hidden(ids(1, 3), cache=cache)
    with pytest.raises(ValueError, match="document_ids cannot be continued"):
        model.hidden(ids(1, 2), document_ids=torch.zeros(1, 2), cache=cache)


@torch.no_grad()
def test_weights_of_a_cached_step_cover_all_tokens(make, ids):
    model, tokens, cache = make("decoder", **RICH), ids(2, 5), KVCache(5)
    model.hidden(tokens[:, :4], cache=cache)
    _, weights = model.hidden(tokens[:, 4:], cache=cache, return_attention=True)
    _, whole = model.hidden(tokens, return_attention=True)
    torch.testing.assert_close(weights[1], whole[1][:, :, 4:], atol=1e-5, rtol=1e-5)
