"""Blocks of a token stream: every token is an input once an epoch, labels shift right, documents are told apart."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.data.packing import DocumentBlocks, StreamBlocks
from lit_tfm.data.sampling import Key


def stream(lengths):
    """Documents whose tokens are their positions in the stream, so a test can tell where each came from."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(tokens=np.arange(offsets[-1], dtype=np.uint16), offsets=offsets)


def documents_of(store, tokens):
    """Number of the document each token came from, by brute force."""
    return [max(i for i, start in enumerate(store.offsets[:-1]) if start <= token) for token in tokens]


stores = st.lists(st.integers(1, 30), min_size=1, max_size=20).map(stream)
sizes = st.integers(1, 25)


@given(store=stores, size=sizes, extra=st.integers(0, 2), epoch=st.integers(0, 5), seed=st.none() | st.integers(0, 3))
def test_stream_uses_every_token_once(store, size, extra, epoch, seed):
    blocks = StreamBlocks(store, size, extra, seed=seed)
    n = len(store.tokens)
    examples = blocks.__getitems__([Key(epoch, index) for index in range(len(blocks))])
    inputs = np.concatenate([e["tokens"][: len(e["tokens"]) - extra] for e in examples])
    assert Counter(inputs.tolist()) == Counter(range(n))
    assert blocks.wasted_tokens == len(blocks) * size - n
    assert [len(e["tokens"]) - extra for e in examples] == [size] * (len(blocks) - 1) + [size - blocks.wasted_tokens]
    for example in examples:  # each token is followed by its successor on the ring
        assert (np.diff(example["tokens"]) % n == 1 % n).all()
    if extra == 1:
        labels = np.concatenate([e["tokens"][1:] for e in examples])
        np.testing.assert_array_equal(labels, (inputs + 1) % n)
        assert Counter(labels.tolist()) == Counter(range(n))


@given(store=stores, size=sizes, extra=st.integers(0, 2), epoch=st.integers(0, 5))
def test_stream_tells_documents_apart(store, size, extra, epoch):
    blocks = StreamBlocks(store, size, extra, seed=1)
    for example in blocks.__getitems__([Key(epoch, index) for index in range(len(blocks))]):
        ids, origin = example["document_ids"], documents_of(store, example["tokens"])
        assert ids.dtype == np.int32
        assert ids[0] == 0
        # a new number exactly where a document's first token stands
        starts = np.isin(example["tokens"][1:], store.offsets[:-1])
        np.testing.assert_array_equal(np.diff(ids), starts.astype(int))
        if len(set(origin)) == 1 and not starts.any():
            assert not ids.any()


@given(store=stores, size=sizes, extra=st.integers(0, 1))
def test_documents_are_cut_at_their_borders(store, size, extra):
    blocks = DocumentBlocks(store, size, extra)
    examples = blocks.__getitems__([Key(0, index) for index in range(len(blocks))])
    inputs = [e["tokens"][: len(e["tokens"]) - extra] for e in examples]
    assert np.concatenate(inputs).tolist() == list(range(len(store.tokens)))
    assert [len(i) for i in inputs] == blocks.lengths.tolist()
    assert max(blocks.lengths) <= size
    for example, tokens in zip(examples, inputs, strict=True):
        assert len(set(documents_of(store, tokens))) == 1
        assert not example["document_ids"][: len(tokens)].any()
        if extra:
            assert example["tokens"][-1] == (tokens[-1] + 1) % len(store.tokens)


def test_epochs_begin_elsewhere_and_validation_does_not():
    store = stream([50] * 20)
    train, validation = StreamBlocks(store, 16, seed=0), StreamBlocks(store, 16)
    firsts = [int(train[Key(epoch, 0)]["tokens"][0]) for epoch in range(30)]
    assert len(set(firsts)) > 8
    assert max(firsts) < 16
    assert firsts == [int(StreamBlocks(store, 16, seed=0)[Key(e, 0)]["tokens"][0]) for e in range(30)]
    assert {int(validation[Key(epoch, 0)]["tokens"][0]) for epoch in range(30)} == {0}


def test_one_key_equals_a_batch_and_epochs_may_mix():
    blocks = StreamBlocks(stream([7, 30, 2, 41]), 9, 1, seed=0)
    keys = [Key(0, 8), Key(3, 2), Key(1, 0), Key(0, 8, True)]
    for one, key in zip(blocks.__getitems__(keys), keys, strict=True):
        alone = blocks[key]
        np.testing.assert_array_equal(one["tokens"], alone["tokens"])
        np.testing.assert_array_equal(one["document_ids"], alone["document_ids"])
        assert one["key"] is key


def test_crossing_documents_is_asked_for_and_has_no_ids():
    blocks = StreamBlocks(stream([7, 30]), 9, cross_documents=True)
    assert blocks[Key(0, 0)]["document_ids"] is None


def test_tokens_come_ready_for_torch():
    assert StreamBlocks(stream([7, 30]), 9)[Key(0, 0)]["tokens"].dtype == np.int64


def test_empty_is_refused():
    with pytest.raises(ValueError, match="0 tokens"):
        StreamBlocks(stream([0]), 9)
