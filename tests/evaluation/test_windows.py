"""Sliding windows: every token once, with the context promised, and the losses that a plain loop finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.data.store import TokenStore, write_store
from lit_tfm.errors import UserError
from lit_tfm.evaluation import windows
from lit_tfm.evaluation.scoring import blocks
from lit_tfm.evaluation.splits import open_split
from lit_tfm.evaluation.subject import open_subject


def quiet(done: int) -> None:
    pass


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 12))
def test_every_token_is_scored_once_with_what_stands_before_it(sizes, context, stride) -> None:
    stride = min(stride, context)
    starts = np.cumsum([0, *sizes])[:-1]
    made = windows.slide(starts, np.array(sizes), context, stride)
    seen = np.zeros(sum(sizes), dtype=int)
    for begin, scored, end in zip(made.begin, made.scored, made.end, strict=True):
        seen[scored:end] += 1
        text = np.searchsorted(starts, begin, side="right") - 1
        text = max(i for i in range(len(sizes)) if starts[i] <= begin and sizes[i])
        assert starts[text] <= begin < end <= starts[text] + sizes[text]
        assert end - begin <= context
        for place in (scored, end - 1):  # as much as the stride allows
            assert place - begin + 1 >= min(context - stride + 1, place - starts[text] + 1)
    assert (seen == 1).all()
    assert made.targets == sum(sizes)


def test_a_stride_beyond_the_context_is_refused() -> None:
    for stride in (0, 5):
        with pytest.raises(UserError, match="--stride"):
            windows.slide(np.array([0]), np.array([9]), 4, stride)


@pytest.fixture
def subject(trained_runs):
    return open_subject(trained_runs("causal"))


def store_of(folder: Path, subject, sizes) -> TokenStore:
    """Documents of random tokens, each behind its separator."""
    tokenizer, random = subject.task.facts.tokenizer, np.random.default_rng(0)
    documents = [np.append(tokenizer.sep_id, random.integers(10, tokenizer.vocab_size, size - 1)) for size in sizes]
    write_store(folder, documents, tokenizer.vocab_size)
    return TokenStore(folder)


@torch.no_grad()
def one_by_one(task, text: list[int], context: int, stride: int) -> list[float]:
    """The loss of each token of a text but the first: a forward pass each, over the window that scores it."""
    found = []
    for place in range(len(text) - 1):  # of the input
        window = max(0, -(-(place + 1 - context) // stride))
        begin = window * stride
        hidden = task.model.hidden(torch.tensor([text[begin : place + 1]]))
        found.append(float(-task.head(hidden[0, -1]).log_softmax(0)[text[place + 1]]))
    return found


@pytest.mark.parametrize(("context", "stride"), [(8, 1), (8, 3), (8, 8), (64, 16)])
def test_losses_are_those_of_a_plain_loop(subject, tmp_path, context, stride) -> None:
    store = store_of(tmp_path / "store", subject, [5, 30, 1, 12])
    tokens = store.tokens.tolist()
    expected = []
    for begin, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        text = [*tokens[begin:end], tokens[end % len(tokens)]]
        expected += one_by_one(subject.task, text, context, stride)
    made = windows.windows_of(store, context, stride, cross_documents=False)
    losses, _ = windows.score(subject, store, made, quiet)
    assert losses == pytest.approx(expected, abs=2e-5)


def test_attention_across_documents_reads_one_text(subject, tmp_path) -> None:
    store = store_of(tmp_path / "store", subject, [5, 9, 12])
    text = store.tokens.tolist()
    made = windows.windows_of(store, 8, 4, cross_documents=True)
    losses, _ = windows.score(subject, store, made, quiet)
    assert losses == pytest.approx(one_by_one(subject.task, [*text, text[0]], 8, 4), abs=2e-5)


def test_windows_side_by_side_are_the_blocks_of_training(subject) -> None:
    """The test split is one document, so blocks and windows are the same."""
    split = open_split(subject, "test")
    store, size = split.data.stores["test"], split.data.block_size
    losses, hits = windows.score(subject, store, windows.windows_of(store, size, size, False), quiet)
    slid = windows.units(store, losses, hits, size)
    fixed = blocks(subject, split, quiet)
    assert len(store) == 1
    assert slid.sums["loss"][0] == pytest.approx(fixed.sums["loss"][0], rel=1e-5)
    assert slid.means() == pytest.approx(fixed.means(), rel=1e-6)


def test_more_context_helps_and_a_limit_takes_some_windows(subject) -> None:
    split = open_split(subject, "test")
    store = split.data.stores["test"]
    made = windows.windows_of(store, 32, 8, False)
    some = made.some(5)
    assert len(some) == 5
    losses, hits = windows.score(subject, store, some, quiet)
    found = windows.units(store, losses, hits, 32)
    assert found.sums["loss"][1].sum() == some.targets == np.count_nonzero(~np.isnan(losses))


def test_units_are_documents_where_there_are_many(subject, tmp_path) -> None:
    sizes = [3 + i % 5 for i in range(windows.LEAST_DOCUMENTS)]
    store = store_of(tmp_path / "store", subject, sizes)
    losses, hits = windows.score(subject, store, windows.windows_of(store, 8, 4, False), quiet)
    found = windows.units(store, losses, hits, 8)
    assert found.unit == "document"
    assert found.sums["loss"][1].tolist() == sizes
    assert found.sums["loss"][0][2] == pytest.approx(losses[store.offsets[2] : store.offsets[3]].sum())
    assert found.means()["accuracy"] == pytest.approx(hits.mean())
