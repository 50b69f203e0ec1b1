import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.nn.pooling import POOLINGS

RULES = {
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.amax(0),
    "first": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
}


@pytest.mark.parametrize("name", POOLINGS)
@settings(max_examples=60, deadline=None)
@given(mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_pooling_takes_what_may_be_seen_and_nothing_else(name, mask):
    mask = torch.tensor(mask)
    x = torch.randn(len(mask), 5, 3) - 4  # below 0: a max that reads the padding as 0 shows
    pooled = POOLINGS[name](x, mask)
    for row, keep, got in zip(x, mask, pooled, strict=True):
        torch.testing.assert_close(got, RULES[name](row[keep]) if keep.any() else torch.zeros(3))


@pytest.mark.parametrize("name", POOLINGS)
def test_no_mask_is_a_full_mask(name):
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(POOLINGS[name](x), POOLINGS[name](x, torch.ones(2, 5, dtype=torch.bool)))
