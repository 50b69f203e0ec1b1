"""Span corruption: nothing of the text is lost, shapes follow from lengths, noise from keys."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.data.sampling import Key
from lit_tfm.data.tokenizers import Char
from lit_tfm.errors import UserError
from lit_tfm.generation.decode import decode
from lit_tfm.tasks.span_corruption import SpanCollator, SpanCorruption, draw_spans, span_counts

TOKENIZER = Char(sentinels=40).train(["abcdefghijklmnopqrstuvwxyz "])
SEP, PAD, SENTINELS = TOKENIZER.sep_id, TOKENIZER.pad_id, TOKENIZER.sentinel_ids
ORDINARY = np.arange(45, TOKENIZER.vocab_size)


def examples(lengths, seed=0, epoch=0, documents=None, fillers=()):
    random = np.random.default_rng(seed)
    return [
        {"tokens": random.choice(ORDINARY, n), "document_ids": documents, "key": Key(epoch, i, i in fillers)}
        for i, n in enumerate(lengths)
    ]


def rows_of(batch, row):
    """Encoder tokens and labels of a row, padding taken away."""
    inputs = batch["input_ids"][row]
    mask = batch.get("attention_mask")
    labels = batch["labels"][row]
    return (inputs if mask is None else inputs[mask[row]]).tolist(), labels[labels != -100].tolist()


def rebuild(inputs, labels):
    """The text: every sentinel of the input replaced by what the target writes behind the same sentinel."""
    spans, current = {}, None
    assert labels[-1] == SEP
    for token in labels[:-1]:
        if token in SENTINELS:
            current = spans[token] = []
        else:
            current.append(token)
    assert list(spans) == SENTINELS[: len(spans)] == [t for t in inputs if t in SENTINELS]
    assert all(spans.values()), "an empty span"
    return [t for token in inputs for t in spans.get(token, [token])]


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    density=st.floats(0.05, 0.9),
    mean_span=st.floats(2.5, 8.0),
    seed=st.integers(0, 10**6),
)
def test_text_is_rebuilt_from_input_and_target(lengths, density, mean_span, seed):
    collator = SpanCollator(TOKENIZER, density, mean_span)
    collator.seed = seed
    rows = examples(lengths, seed)
    batch = collator(rows)
    for i, row in enumerate(rows):
        inputs, labels = rows_of(batch, i)
        assert rebuild(inputs, labels) == row["tokens"].tolist()
        hidden, spans = (int(n[0]) for n in span_counts(np.array([len(row["tokens"])]), density, mean_span))
        assert len(inputs) == len(row["tokens"]) - hidden + spans
        assert len(labels) == hidden + spans + 1
        assert batch["is_text"][i].sum() == hidden


def test_inputs_of_the_decoder_are_its_labels_moved_right():
    batch = SpanCollator(TOKENIZER)(examples([64] * 5))
    assert (batch["decoder_input_ids"][:, 0] == PAD).all()
    assert torch.equal(batch["decoder_input_ids"][:, 1:], batch["labels"][:, :-1])


def test_full_blocks_have_one_shape_whatever_the_noise():
    shapes = set()
    for epoch in range(20):
        batch = SpanCollator(TOKENIZER)(examples([128] * 3, epoch=epoch))
        assert "attention_mask" not in batch
        assert "document_ids" not in batch
        shapes.add((batch["input_ids"].shape, batch["labels"].shape))
    # 128 * 0.15 = 19 tokens in 6 spans
    assert shapes == {((3, 128 - 19 + 6), (3, 19 + 6 + 1))}


def test_noise_is_a_function_of_the_key_alone():
    rows = examples([50, 50, 31, 50])
    collator = SpanCollator(TOKENIZER)
    together = collator(rows)
    for i, row in enumerate(rows):
        assert rows_of(together, i) == rows_of(collator([row]), 0)
        assert rows_of(together, i) == rows_of(collator(rows[::-1]), len(rows) - 1 - i)
    later = [{**row, "key": Key(1, row["key"].index)} for row in rows]
    assert rows_of(collator(later), 0) != rows_of(together, 0)
    collator.seed = 1
    assert rows_of(collator(rows), 0) != rows_of(together, 0)


def test_every_placement_is_equally_likely():
    # 6 tokens, 3 hidden in 2 spans: C(4, 2) choices of gaps times 2 ways to cut 3 tokens in two.
    n, random = 24_000, np.random.default_rng(0)
    spans = draw_spans(np.full(n, 6), 0.5, 1.5, random.random((n, 7)), random.random((n, 7)))
    code = (spans.hidden * 2 ** np.arange(6)).sum(1) * 64 + (spans.first * 2 ** np.arange(6)).sum(1)
    _, counts = np.unique(code, return_counts=True)
    assert len(counts) == 12
    expected = n / 12
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # chi-square, 11 degrees of freedom, p = 0.001


def test_documents_of_spans_and_restarts_of_the_decoder():
    documents = np.repeat([0, 1, 2], [20, 20, 24]).astype(np.int32)
    for epoch in range(30):
        row = examples([64], epoch=epoch, documents=documents)
        batch = SpanCollator(TOKENIZER, 0.3)(row)
        inputs, labels = rows_of(batch, 0)
        of_input = dict(zip(inputs, batch["document_ids"][0].tolist(), strict=True))
        owners, current = batch["decoder_document_ids"][0].tolist(), None
        for place, (label, owner) in enumerate(zip(labels, owners, strict=True)):
            if label in SENTINELS:
                current = of_input[label]
            assert owner == current
            restart = place == 0 or owner != owners[place - 1]
            assert batch["decoder_input_ids"][0, place] == (PAD if restart else labels[place - 1])


def test_a_decoder_in_a_packed_block_reads_its_own_document_only(tools):
    """Changing one document changes no hidden state of the decoder in another."""
    model = tools.model("encoder_decoder", positions="none").eval()
    documents = np.repeat([0, 1], [32, 32]).astype(np.int32)
    [row] = examples([64], documents=documents)
    other = {**row, "tokens": np.where(documents == 0, row["tokens"][::-1], row["tokens"])}
    names = ("input_ids", "decoder_input_ids", "document_ids", "decoder_document_ids")
    a, b = (SpanCollator(TOKENIZER, 0.3)([r]) for r in (row, other))
    one, two = (model.hidden(**{name: batch[name] for name in names}) for batch in (a, b))
    second = a["decoder_document_ids"][0] == 1
    assert second.any()
    assert not second.all()
    # A span over the border takes hidden tokens of the second document with it; the text of its own is what counts.
    assert torch.equal(one[0, second], two[0, second])
    assert not torch.equal(one[0, ~second], two[0, ~second])


def test_fillers_count_for_nothing(tools):
    task = tools.task(SpanCorruption, "encoder_decoder").eval()
    alone = task(task.collator()(examples([40, 40])))
    batch = task.collator()(examples([40, 40, 40], fillers=[2]))
    filled = task(batch)
    assert batch["n_tokens"] == 80
    assert filled.count == alone.count
    torch.testing.assert_close(filled.loss_sum, alone.loss_sum)


def test_padding_changes_nothing(tools):
    task = tools.task(SpanCorruption, "encoder_decoder").eval()
    documents = np.repeat([0, 1], [10, 7]).astype(np.int32)
    short = examples([17], documents=documents)
    [long] = examples([60], documents=np.zeros(60, dtype=np.int32))
    alone = task(task.collator()(short))
    padded = task.collator()([*short, {**long, "key": Key(0, 9, filler=True)}])
    assert padded["input_ids"].shape[1] > 17
    torch.testing.assert_close(task(padded).loss_sum, alone.loss_sum)


def test_too_few_sentinels_say_what_to_type():
    few = Char(sentinels=3).train(["abc"])
    collator = SpanCollator(few)
    collator.check(64)  # 10 tokens in 3 spans
    with pytest.raises(UserError, match=r"19 spans.*3 sentinels.*tokenizer\.sentinels=100"):
        collator.check(384)
    with pytest.raises(UserError, match=r"tokenizer\.sentinels=100"):
        SpanCollator(Char().train(["abc"]))


def test_metrics(tools):
    task = tools.task(SpanCorruption, "encoder_decoder", stats={"tokens": 300, "words": 60, "bytes": 900}).eval()
    report = task.report({"loss": 2.0, "accuracy": 0.5, "text_loss": 3.0}, "val")
    assert report == pytest.approx(
        {
            "loss": 2.0,
            "accuracy": 0.5,
            "perplexity": np.exp(2.0),
            "word_perplexity": np.exp(3.0 * 5),
            "bits_per_byte": 3.0 / np.log(2) / 3,
        }
    )


def test_text_loss_is_over_hidden_text_only(tools):
    task = tools.task(SpanCorruption, "encoder_decoder").eval()
    batch = task.collator()(examples([40, 23]))
    output = task(batch)
    logits = task.head(task.model.hidden(**task.model_inputs(batch)))
    likely = logits.log_softmax(-1).gather(2, batch["labels"].clamp(min=0)[..., None]).squeeze(-1)
    text = batch["labels"] >= 45  # no sentinel, no end
    torch.testing.assert_close(output.sums["text_loss"][0], -likely[text].sum())
    assert output.sums["text_loss"][1] == text.sum()


def test_learns_and_fills_spans(tools):
    """A text of period 3 tells what is hidden."""
    rows = [{"tokens": np.resize(45 + np.roll([1, 5, 9], i), 24), "document_ids": None} for i in range(3)]
    task = tools.task(SpanCorruption, "encoder_decoder", lr=5e-3)
    trainer = tools.fit(task, rows * 8, steps=120, batch_size=24)
    assert trainer.callback_metrics["val/accuracy"] > 0.95
    task.eval()
    batch = task.collator()([{**row, "key": Key(5, i)} for i, row in enumerate(rows)])
    with torch.no_grad():
        written = decode(
            task.reader({"input_ids": batch["input_ids"]}), batch["decoder_input_ids"][:, :1], 11, stop_id=SEP
        )
    pairs = task.samples(batch, lambda read, start, max_new_tokens: decode(read, start, max_new_tokens, stop_id=SEP))
    for row, asked, said, (shown, answer) in zip(rows, batch["input_ids"], written, pairs, strict=True):
        assert rebuild(asked.tolist(), said.tolist()[: said.tolist().index(SEP) + 1]) == row["tokens"].tolist()
        assert "<extra_id_0>" in shown
        assert answer.startswith("<extra_id_0>")
        assert answer.endswith("[SEP]")
