"""Masks: pure functions of their key, exact shares, whole words, nothing special."""

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.data.sampling import Key
from lit_tfm.data.tokenizers import Tokenizer, WordPiece
from lit_tfm.errors import UserError
from lit_tfm.tasks.masked_lm import MaskedLM, MaskingCollator

WORDS = "the cat sat on the mat and unbelievable electroencephalographies walked past a misunderstanding " * 3
TOKENIZER = WordPiece(vocab_size=60).train([WORDS, "cat mat sat the on and"])
SPECIAL = [TOKENIZER.pad_id, TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.mask_id]
IGNORED = -100


def collator(rate=0.15, replace=(1.0, 0.0, 0.0), whole_word=False, seed=0):
    made = MaskingCollator(TOKENIZER, rate, replace, whole_word)
    made.seed = seed
    return made


def examples(lengths, seed=0, epoch=0, fillers=()):
    random = np.random.default_rng(seed)
    rows = [random.integers(5, TOKENIZER.vocab_size, n) for n in lengths]
    return [
        {"tokens": row, "document_ids": np.zeros(len(row), np.int32), "key": Key(epoch, i, i in fillers)}
        for i, row in enumerate(rows)
    ]


def row_of(batch, row, length):
    return batch["input_ids"][row, :length].tolist(), batch["labels"][row, :length].tolist()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    epoch=st.integers(0, 50),
    whole_word=st.booleans(),
)
def test_masks_depend_on_the_key_alone(lengths, seed, epoch, whole_word):
    made = collator(0.3, (0.8, 0.1, 0.1), whole_word, seed)
    rows = examples(lengths, seed, epoch)
    together, backwards = made(rows), made(rows[::-1])
    for i, n in enumerate(lengths):
        alone = row_of(made([rows[i]]), 0, n)
        assert alone == row_of(together, i, n) == row_of(backwards, len(rows) - 1 - i, n)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), min_size=1, max_size=70), min_size=1, max_size=6),
    rate=st.floats(0.01, 1.0),
    shares=st.sampled_from([(1.0, 0.0, 0.0), (0.8, 0.1, 0.1), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]),
    whole_word=st.booleans(),
    epoch=st.integers(0, 50),
    data=st.data(),
)
def test_any_text_is_rebuilt_from_inputs_and_labels(rows, rate, shares, whole_word, epoch, data):
    """Of any tokens, special ones among them: what is not labelled is as it was, and labels are what was hidden."""
    fillers = data.draw(st.sets(st.sampled_from(range(len(rows)))))
    given = [
        {"tokens": np.array(row), "document_ids": np.zeros(len(row), np.int32), "key": Key(epoch, i, i in fillers)}
        for i, row in enumerate(rows)
    ]
    batch = collator(rate, shares, whole_word)(given)
    for i, row in enumerate(rows):
        inputs, labels = row_of(batch, i, len(row))
        assert [old if new == IGNORED else new for old, new in zip(inputs, labels, strict=True)] == (
            inputs if i in fillers else row
        )
        hidden = [new for new in labels if new != IGNORED]
        assert not set(hidden) & set(SPECIAL)
        assert not hidden or i not in fillers
        ordinary = sum(token not in SPECIAL for token in row)
        assert len(hidden) <= ordinary
        if i not in fillers and ordinary and not whole_word:
            assert len(hidden) >= 1
        assert (batch["labels"][i, len(row) :] == IGNORED).all()


def test_masks_change_with_epoch_and_seed():
    rows = examples([60] * 4)
    later = [{**row, "key": Key(1, row["key"].index)} for row in rows]
    first = collator()(rows)["labels"]
    assert not torch.equal(first, collator()(later)["labels"])
    assert not torch.equal(first, collator(seed=1)(rows)["labels"])
    assert torch.equal(first, collator()(rows)["labels"])


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.4])
def test_the_share_is_exact_in_every_row(rate):
    lengths = [1, 2, 7, 40, 61, 64]
    labels = collator(rate)(examples(lengths))["labels"]
    for row, n in zip(labels, lengths, strict=True):
        assert (row != IGNORED).sum() == max(1, round(rate * n))


def test_every_token_is_as_likely_to_be_hidden():
    made, hidden = collator(0.25), np.zeros(16)
    [row] = examples([16])
    for epoch in range(3000):
        hidden += (made([{**row, "key": Key(epoch, 0)}])["labels"][0] != IGNORED).numpy()
    assert hidden.sum() == 3000 * 4
    assert np.abs(hidden / 3000 - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 3000)


def test_bert_shares():
    batch = collator(0.5, (0.8, 0.1, 0.1))(examples([200] * 200))
    hidden = batch["labels"] != IGNORED
    inputs, labels = batch["input_ids"][hidden], batch["labels"][hidden]
    n = len(labels)
    masked = (inputs == TOKENIZER.mask_id).float().mean().item()
    changed = ((inputs != TOKENIZER.mask_id) & (inputs != labels)).float().mean().item()
    # A random token is the old one once in a while.
    spread = 4 * np.sqrt(0.25 / n)
    assert masked == pytest.approx(0.8, abs=spread)
    assert changed == pytest.approx(0.1 * (1 - 1 / (TOKENIZER.vocab_size - 4)), abs=spread)
    assert torch.equal(
        batch["input_ids"][~hidden],
        torch.stack([torch.from_numpy(r["tokens"]) for r in examples([200] * 200)])[~hidden],
    )
    replaced = inputs[(inputs != TOKENIZER.mask_id) & (inputs != labels)]
    assert not set(replaced.tolist()) & set(SPECIAL)
    assert len(set(replaced.tolist())) == TOKENIZER.vocab_size - 4  # all ordinary tokens occur


def test_special_tokens_are_never_hidden():
    random = np.random.default_rng(0)
    tokens = random.choice([*SPECIAL, *range(5, TOKENIZER.vocab_size)], (50, 40), p=None)
    rows = [{"tokens": row, "document_ids": None, "key": Key(0, i)} for i, row in enumerate(tokens)]
    batch = collator(0.9)(rows)
    assert not set(batch["labels"].flatten().tolist()) & set(SPECIAL)
    assert (
        batch["input_ids"][torch.from_numpy(np.isin(tokens, SPECIAL))].numpy() == tokens[np.isin(tokens, SPECIAL)]
    ).all()
    only = [{"tokens": np.full(9, TOKENIZER.sep_id), "document_ids": None, "key": Key(0, 0)}]
    assert len(collator(0.9)(only)["targets_at"]) == 0


def test_whole_words_are_hidden_whole():
    ids = TOKENIZER.encode(WORDS)
    starts = TOKENIZER.word_start[ids]
    assert not starts.all()
    for begin in (0, int(np.flatnonzero(~starts)[0])):  # also a block that begins in the middle of a word
        tokens = ids[begin:].astype(np.int64)
        word = np.cumsum(starts[begin:])
        for epoch in range(30):
            row = {"tokens": tokens, "document_ids": None, "key": Key(epoch, 0)}
            hidden = (collator(0.2, whole_word=True)([row])["labels"][0] != IGNORED).numpy()
            wanted = round(0.2 * len(tokens))
            assert wanted <= hidden.sum() < wanted + np.bincount(word).max()
            for number in np.unique(word):
                assert hidden[word == number].all() or not hidden[word == number].any()


def test_the_first_word_is_independent_of_the_rest_of_a_word_before_it():
    starts = np.flatnonzero(TOKENIZER.word_start)
    inside = np.flatnonzero(~TOKENIZER.word_start)[0]
    tokens = np.array([inside, *starts[5:12]])
    apart = 0
    for epoch in range(50):
        row = {"tokens": tokens, "document_ids": None, "key": Key(epoch, 0)}
        labels = collator(0.3, whole_word=True)([row])["labels"][0]
        apart += (labels[0] == IGNORED) != (labels[1] == IGNORED)
    assert apart > 0


def test_targets_at_are_the_labelled_places():
    batch = collator()(examples([30, 12, 30], fillers=[2]))
    flat = batch["labels"].flatten()
    assert torch.equal(batch["targets_at"], (flat != IGNORED).nonzero().flatten())
    assert (batch["labels"][2] == IGNORED).all()
    assert batch["n_tokens"] == 42


def test_loss_is_that_of_the_masked_rows(tools):
    task = tools.task(MaskedLM, "encoder", rate=0.3).eval()
    rows = [{**tools.block(n, seed=n, documents=np.zeros(n, np.int32)), "key": Key(0, n)} for n in (30, 11)]
    batch = task.collator()(rows)
    output = task(batch)
    logits = task.head(task.model.hidden(**task.model_inputs(batch)))
    likely = logits.log_softmax(-1)
    hidden = batch["labels"] != IGNORED
    expected = -likely[hidden].gather(1, batch["labels"][hidden][:, None]).sum()
    torch.testing.assert_close(output.loss_sum, expected)
    assert output.count == hidden.sum()
    right, n = output.sums["accuracy"]
    assert right == (logits.argmax(-1) == batch["labels"])[hidden].sum()
    assert n == hidden.sum()


def test_padding_and_fillers_change_nothing(tools):
    task = tools.task(MaskedLM, "encoder").eval()
    document = np.repeat([0, 1], [9, 8]).astype(np.int32)
    short = {**tools.block(17, documents=document), "key": Key(0, 0)}
    filler = {**tools.block(50, documents=np.zeros(50, np.int32)), "key": Key(0, 1, filler=True)}
    alone, padded = (task(task.collator()(rows)) for rows in ([short], [short, filler]))
    torch.testing.assert_close(padded.loss_sum, alone.loss_sum)
    assert padded.count == alone.count


def test_a_tokenizer_without_mask_is_refused():
    like_gpt2 = Tokenizer(
        tokenizers.Tokenizer(tokenizers.models.BPE({"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    )
    with pytest.raises(UserError, match=r"mask.*masked_lm"):
        MaskingCollator(like_gpt2, 0.15, (1.0, 0.0, 0.0), False)


def test_samples_fill_the_masks(tools):
    task = tools.task(MaskedLM, "encoder").eval()
    rows = [{**tools.block(20, seed=i), "key": Key(0, i)} for i in range(5)]
    pairs = task.samples(task.collator()(rows), limit=3)
    assert len(pairs) == 3
    for asked, filled in pairs:
        assert asked.count("[MASK]") == 6
        assert "[MASK]" not in filled
