"""Batches of labelled texts: layout, padding, cutting, dropped tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.data.sampling import Key
from lit_tfm.data.tokenizers import Char
from lit_tfm.errors import UserError
from lit_tfm.tasks.text_pairs import TextCollator

TOKENIZER = Char().train(["abcdefghij"])
PAD, CLS, SEP = TOKENIZER.pad_id, TOKENIZER.cls_id, TOKENIZER.sep_id
A, B = TOKENIZER.encode("abcde"), TOKENIZER.encode("fgh")


def example(a, b=None, label=0, index=0, epoch=0, filler=False):
    return {"tokens": a, "tokens_b": b, "label": label, "key": Key(epoch, index, filler)}


def test_layout():
    batch = TextCollator(TOKENIZER, lead=True, max_length=64)([example(A, B, 1), example(B, None, 2)])
    assert batch["input_ids"].tolist() == [
        [CLS, *A, SEP, *B, SEP],
        [CLS, *B, SEP, *[PAD] * 6],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [11, 5]
    assert batch["segment_ids"].tolist() == [[0] * 7 + [1] * 4, [0] * 11]
    assert batch["labels"].tolist() == [1, 2]
    assert batch["n_tokens"] == 16
    plain = TextCollator(TOKENIZER, lead=False, max_length=64)([example(A), example(A[::-1])])
    assert plain["input_ids"].tolist() == [[*A, SEP], [*A[::-1], SEP]]
    assert "attention_mask" not in plain  # attention without a mask is the fast one
    assert "segment_ids" not in plain


def test_fillers():
    batch = TextCollator(TOKENIZER, lead=True, max_length=64)([example(A, label=1), example(B, label=1, filler=True)])
    assert batch["labels"].tolist() == [1, -100]
    assert batch["counted"].tolist() == [True, False]
    assert batch["n_tokens"] == 7
    several = [example(A, label=np.array([1, 0])), example(A, label=np.array([1, 1]), filler=True)]
    assert TextCollator(TOKENIZER, lead=True, max_length=64)(several)["labels"].tolist() == [[1, 0], [-100, -100]]


@given(a=st.integers(0, 40), b=st.integers(0, 40) | st.none(), room=st.integers(1, 40), lead=st.booleans())
def test_what_does_not_fit_is_cut_from_the_longer_text(a, b, room, lead):
    max_length = room + lead + 1 + 1
    collator = TextCollator(TOKENIZER, lead=lead, max_length=max_length)
    room = max_length - collator.special_tokens(pair=b is not None)
    first = np.full(a, 7)
    second = None if b is None else np.full(b, 8)
    row = collator([example(first, second)])["input_ids"][0].tolist()
    kept_a, kept_b = row.count(7), row.count(8)
    assert len(row) == kept_a + kept_b + collator.special_tokens(pair=b is not None) <= max_length
    assert kept_a + kept_b == min(room, a + (b or 0))
    if kept_a < a and b is not None:
        assert kept_a >= kept_b  # the first was cut, so it is not the shorter one now
    if b is not None and kept_b < b:
        assert kept_b >= kept_a - 1


def test_dropped_tokens_depend_on_the_key_alone():
    random = np.random.default_rng(0)
    rows = [example(random.integers(5, 15, n), index=i, epoch=3) for i, n in enumerate([200, 150, 300])]
    collator = TextCollator(TOKENIZER, lead=True, max_length=400, dropout=0.2)
    together = collator(rows)["dropped"]
    for i, row in enumerate(rows):
        alone = collator([row])["dropped"][0]
        assert torch.equal(together[i, : len(alone)], alone)
        assert not together[i, len(alone) :].any()  # no padding
        assert not alone[0]  # no cls
        assert not alone[-1]  # no sep
    assert float(together.sum() / 650) == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 650))
    later = collator([{**row, "key": Key(4, row["key"].index)} for row in rows])["dropped"]
    assert not torch.equal(later, together)
    assert "dropped" not in TextCollator(TOKENIZER, lead=True, max_length=400)(rows)


def test_no_room_for_a_text():
    with pytest.raises(UserError, match=r"model\.max_length=3"):
        TextCollator(TOKENIZER, lead=True, max_length=3)
