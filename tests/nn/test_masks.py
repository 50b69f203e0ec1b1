"""Masks against the rule written out in loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.nn.masks import Mask, cross_mask, leading_padding, self_mask


def draw_rows(data, batch, length, values):
    row = st.lists(values, min_size=length, max_size=length)
    return torch.tensor(data.draw(st.lists(row, min_size=batch, max_size=batch)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_self_mask_is_the_rule(data):
    batch, queries, start = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6)), data.draw(st.integers(0, 4))
    causal, padded, packed, biased = (data.draw(st.booleans()) for _ in range(4))
    start, packed = (0, packed) if not causal or packed else (start, False)
    keys = start + queries
    seen = draw_rows(data, batch, keys, st.booleans()) if padded else None
    documents = draw_rows(data, batch, keys, st.integers(0, 2)) if packed else None
    bias = torch.randn(2, queries, keys) if biased else None
    mask = self_mask(queries, keys, causal=causal, start=start, seen=seen, documents=documents, bias=bias)
    assert mask.tensor is None or not mask.is_causal
    assert mask.tensor is None or (mask.tensor.dtype == torch.bool) == (bias is None)
    for b in range(batch):
        for q in range(queries):
            for k in range(keys):
                me = start + q
                may = not causal or k <= me
                may = may and (seen is None or bool(seen[b, k]))
                may = may and (documents is None or bool(documents[b, me] == documents[b, k]))
                may = may or k == me
                assert visible(mask, b, q, k) == may
                if bias is not None and may:
                    got = mask.tensor.expand(batch, 2, queries, keys)[b, :, q, k]
                    assert torch.equal(got, bias[:, q, k])


def visible(mask, b, q, k):
    if mask.tensor is None:
        return not mask.is_causal or k <= q
    one = mask.tensor[min(b, mask.tensor.size(0) - 1), 0, q, k]
    return bool(one) if mask.tensor.dtype == torch.bool else bool(one > -torch.inf)


def test_no_tensor_where_none_is_needed():
    """SDPA's fast kernels are lost as soon as a mask is given."""
    assert self_mask(5, 5, causal=False) == Mask(None, False)
    assert self_mask(5, 5, causal=True) == Mask(None, True)
    assert self_mask(1, 9, causal=True, start=8) == Mask(None, False)
    assert cross_mask() == Mask(None, False)
    assert cross_mask(documents=torch.zeros(1, 2)) == Mask(None, False)


def test_float_masks_have_the_dtype_asked_for():
    assert self_mask(3, 3, causal=True, bias=torch.zeros(2, 3, 3), dtype=torch.bfloat16).tensor.dtype == torch.bfloat16


def test_cross_mask_is_the_rule():
    seen = torch.tensor([[True, True, True, False]])
    documents, memory = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, 1, 1]])
    both = cross_mask(seen, documents, memory).tensor
    assert both.shape == (1, 1, 3, 4)
    assert both[0, 0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert cross_mask(seen).tensor.expand(1, 1, 3, 4)[0, 0].int().tolist() == [[1, 1, 1, 0]] * 3


@pytest.mark.parametrize(
    ("row", "padding"), [([1, 1, 1], 0), ([0, 0, 1], 2), ([1, 0, 0], 0), ([0, 1, 0], 1), ([0, 0, 0], 3)]
)
def test_leading_padding(row, padding):
    assert leading_padding(torch.tensor([row], dtype=torch.bool)).tolist() == [padding]
