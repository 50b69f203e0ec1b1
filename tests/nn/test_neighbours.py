"""Neighbours against the sum spelled out, and what is not one: padding, other documents, the future of a decoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.nn.neighbours import Neighbours


def spelled_out(layer, x, seen, documents):
    out = x.clone()
    for b in range(x.size(0)):
        for t in range(x.size(1)):
            for offset, weight in zip(layer.offsets, layer.weight.chunk(len(layer.offsets)), strict=True):
                s = t - offset
                if 0 <= s < x.size(1) and seen[b, s] and documents[b, s] == documents[b, t]:
                    out[b, t] += weight @ x[b, s]
    return out


@settings(max_examples=40, deadline=None)
@given(causal=st.booleans(), reach=st.integers(1, 5), tokens=st.integers(1, 6), seed=st.integers(0, 999))
def test_it_is_the_sum_spelled_out(causal, reach, tokens, seed):
    torch.manual_seed(seed)
    layer = Neighbours(4, reach, causal=causal)
    torch.nn.init.normal_(layer.weight)
    x, seen = torch.randn(2, tokens, 4), torch.rand(2, tokens) < 0.7
    documents = (torch.rand(2, tokens) < 0.3).cumsum(dim=1)
    everything, one = torch.ones_like(seen), torch.zeros_like(documents)
    torch.testing.assert_close(layer(x), spelled_out(layer, x, everything, one))
    torch.testing.assert_close(layer(x, seen=seen), spelled_out(layer, x, seen, one))
    torch.testing.assert_close(layer(x, documents=documents), spelled_out(layer, x, everything, documents))
    torch.testing.assert_close(layer(x, seen=seen, documents=documents), spelled_out(layer, x, seen, documents))


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_what_a_cache_holds_stands_in_front(cut):
    layer = Neighbours(4, 3, causal=True)
    torch.nn.init.normal_(layer.weight)
    x, seen = torch.randn(2, 6, 4), torch.tensor([[False, True, True, True, True, True], [True] * 6])
    rest = layer(x[:, cut:], before=x[:, :cut], seen=seen)
    torch.testing.assert_close(rest, layer(x, seen=seen)[:, cut:])


def test_it_starts_as_if_it_were_not_there():
    x = torch.randn(2, 3, 4)
    assert torch.equal(Neighbours(4, 2, causal=False)(x), x)
