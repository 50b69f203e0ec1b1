"""Span corruption: spans of a text are replaced by sentinels, and the decoder writes them (Raffel et al. 2020, T5).

    text      the quick brown fox jumps over the lazy dog
    input     the <extra_id_0> fox jumps <extra_id_1> lazy dog
    target    <extra_id_0> quick brown <extra_id_1> over the [SEP]

Letters: B blocks, T tokens of a block, E encoder tokens, D decoder tokens, S spans, C model dim, V vocabulary.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tfm.data.noise import uniform
from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.errors import UserError
from lit_tfm.models.cost import flops_per_token
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.tasks.base import Batch, StepOutput
from lit_tfm.tasks.blanks import BlankOrder, encoded, filled, fills, pieces_of
from lit_tfm.tasks.language import (
    IGNORED,
    LanguageTask,
    document_ids,
    language_head,
    pad,
    real,
    tensors,
)
from lit_tfm.tasks.reader import MemoryReader, Opening, Question, check_room

# Streams of the counter-based noise: one number a decision, so that no decision moves another.
WHERE, HOW_LONG = 0, 1


def span_counts(length: np.ndarray, density: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Hidden tokens and spans of blocks of `length` (B,) tokens: decided by the length alone, so shapes stand still.

    At least one token stays and, from two tokens on, one is hidden; a block of one token has nothing to hide.
    """
    hidden = np.clip(np.rint(length * density), 1, length - 1).astype(np.int64)
    # Between two spans stands at least one token: no more spans than kept tokens plus one.
    most = np.minimum(hidden, length - hidden + 1)
    spans = np.minimum(np.maximum(np.rint(hidden / mean_span).astype(np.int64), 1), most)
    return hidden, np.where(hidden == 0, 0, spans)


class Spans(NamedTuple):
    """Where a batch is hidden. All (B, T) bool."""

    hidden: np.ndarray
    first: np.ndarray  # the first token of each span


def _smallest(draw: np.ndarray, among: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(B, n) bool: in each row the `wanted` (B,) smallest of its first `among` (B,) numbers: a uniform subset."""
    draw = np.where(np.arange(draw.shape[1]) < among[:, None], draw, 2.0)
    edge = np.take_along_axis(np.sort(draw, axis=1), np.maximum(wanted - 1, 0)[:, None], axis=1)
    return (draw <= edge) & (wanted > 0)[:, None] & (draw < 2.0)


def draw_spans(lengths: np.ndarray, density: float, mean_span: float, where: np.ndarray, how_long: np.ndarray) -> Spans:
    """Uniform over all ways to place the spans; `where`, `how_long` (B, T + 1) are uniform numbers.

    Two choices of subsets: which of the gaps around the kept tokens receive a span, and where the row of hidden tokens
    is cut into spans. (T5's own code always keeps the first token and hides the last.)
    """
    hidden, spans = span_counts(lengths, density, mean_span)  # (B,)
    kept = lengths - hidden
    gap = _smallest(where, kept + 1, spans)  # (B, T + 1) a span stands before kept token j
    opens = np.zeros_like(gap)  # (B, T + 1) hidden token j opens a span
    opens[:, 1:] = _smallest(how_long[:, 1:], hidden - 1, spans - 1)
    opens[:, 0] = spans > 0

    rows, gaps = np.nonzero(gap)  # row-major, as all that follows: the spans of row 0 from left to right, then row 1
    _, cuts = np.nonzero(opens)
    start = gaps + cuts  # kept tokens and hidden tokens before the span
    first = np.zeros((len(lengths), where.shape[1]), dtype=bool)
    first[rows, start] = True
    last_of_row = np.append(rows[1:] != rows[:-1], True) if len(rows) else np.zeros(0, dtype=bool)
    sizes = np.where(last_of_row, hidden[rows], np.append(cuts[1:], 0)) - cuts
    change = first.astype(np.int64)
    change[rows, start + sizes] -= 1  # spans never touch, so no other one starts here
    return Spans(change.cumsum(1)[:, :-1] > 0, first[:, :-1])


class SpanCollator:
    """Blocks of tokens -> encoder input with sentinels, decoder input, and labels.

    The spans of a block are a pure function of (seed, epoch, block), and how many there are one of its length alone.
    Separators between documents are hidden like any other token.

    Where a block holds several documents, all of a span belongs to the document of the span's first token, and
    the decoder starts anew at each document (its first input there is the start token): so what one document's decoder
    reads is what it would read if the document stood alone, and a decoder token always has a memory to look at.
    """

    extra_tokens = 0

    def __init__(self, tokenizer: Tokenizer, density: float = 0.15, mean_span: float = 3.0) -> None:
        tokenizer.require("sep", "sentinels", task="span_corruption")
        self.sentinels = np.array(tokenizer.sentinel_ids, dtype=np.int64)
        self.end_id = tokenizer.sep_id
        # T5 starts the decoder with the padding token; a vocabulary without one uses the end token for both.
        self.pad_id = self.start_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.sep_id
        self.density, self.mean_span, self.seed = density, mean_span, 0

    def check(self, length: int) -> None:
        """Raises UserError when blocks of `length` tokens need more sentinels than there are."""
        need = int(span_counts(np.array([length]), self.density, self.mean_span)[1][0])
        if need > len(self.sentinels):
            raise UserError(
                f"blocks of {length} tokens have {need} spans, and the tokenizer has {len(self.sentinels)} sentinels; "
                f"type tokenizer.sentinels={max(100, need)}, or a larger task.mean_span, or a smaller task.density"
            )

    def __call__(self, examples: list[dict]) -> Batch:
        rows = [example["tokens"] for example in examples]
        tokens = pad(rows, self.pad_id)  # (B, T)
        length = tokens.shape[1]
        self.check(length)
        present = real(rows, length)
        spans = draw_spans(
            present.sum(1),
            self.density,
            self.mean_span,
            self._noise(examples, WHERE, length + 1),
            self._noise(examples, HOW_LONG, length + 1),
        )
        documents = document_ids(examples, length)
        filler = np.array([example["key"].filler for example in examples])[:, None]
        return tensors(
            {
                **self._encoder(tokens, present, spans, documents),
                **self._decoder(tokens, spans, documents, filler),
                "n_tokens": int((present & ~filler).sum()),  # of the text: what a run is compared by
            }
        )

    def _noise(self, examples: list[dict], stream: int, n: int) -> np.ndarray:
        keys = [example["key"] for example in examples]
        return uniform(self.seed, np.array([k.epoch for k in keys]), np.array([k.index for k in keys]), stream, n)

    def _encoder(self, tokens, present, spans: Spans, documents) -> dict[str, np.ndarray | None]:
        """Kept tokens, and a sentinel in place of each span."""
        number = np.maximum(spans.first.cumsum(1) - 1, 0)
        content = np.where(spans.first, self.sentinels[number], tokens)
        stays = present & (~spans.hidden | spans.first)  # (B, T)
        used = np.arange(stays.sum(1).max()) < stays.sum(1)[:, None]  # (B, E)
        return {
            "input_ids": _packed(content, stays, used, self.pad_id),
            "attention_mask": None if used.all() else used,
            "document_ids": None if documents is None else _packed(documents, stays, used, -1),
        }

    def _decoder(self, tokens, spans: Spans, documents, filler) -> dict[str, np.ndarray | None]:
        """Labels: each span behind its sentinel, then the end. Inputs: the labels, moved right by one."""
        hidden, first = spans.hidden.sum(1), spans.first.sum(1)  # (B,)
        size = hidden + first + 1
        shape = (len(tokens), int(size.max()))
        labels = np.full(shape, self.pad_id, dtype=np.int64)  # (B, D)
        written = np.zeros(shape, dtype=bool)  # text, as opposed to sentinels and the end
        before = spans.hidden.cumsum(1) - 1 + spans.first.cumsum(1)  # place of a hidden token in the labels
        rows, at = np.nonzero(spans.hidden)
        labels[rows, before[rows, at]] = tokens[rows, at]
        written[rows, before[rows, at]] = True
        rows, at = np.nonzero(spans.first)
        labels[rows, before[rows, at] - 1] = self.sentinels[spans.first.cumsum(1)[rows, at] - 1]
        labels[np.arange(shape[0]), size - 1] = self.end_id
        inputs = np.full(shape, self.start_id, dtype=np.int64)
        inputs[:, 1:] = labels[:, :-1]
        owners = None
        if documents is not None:
            owners = self._owners(spans, documents, before, shape)
            inputs[:, 1:][owners[:, 1:] != owners[:, :-1]] = self.start_id
        counted = (np.arange(shape[1]) < size[:, None]) & ~filler
        return {
            "decoder_input_ids": inputs,
            "decoder_document_ids": owners,
            "labels": np.where(counted, labels, IGNORED),
            "is_text": written & counted,
        }

    @staticmethod
    def _owners(spans: Spans, documents: np.ndarray, before: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """(B, D) document of each label: that of its span's first token; the end and padding go with the last span."""
        owners = np.zeros(shape, dtype=np.int64)
        owners[:, 0] = documents[:, 0]  # a block without spans
        rows, at = np.nonzero(spans.first)
        change = np.zeros(shape, dtype=np.int64)
        change[rows, before[rows, at] - 1] = 1
        order = change.cumsum(1)  # (B, D) number of the span, from 1
        table = np.zeros((shape[0], int(order.max()) + 1), dtype=np.int64)  # (B, S + 1)
        table[:, 0] = documents[:, 0]
        table[rows, spans.first.cumsum(1)[rows, at]] = documents[rows, at]
        return np.take_along_axis(table, order, axis=1)


def _packed(content: np.ndarray, stays: np.ndarray, used: np.ndarray, fill: int) -> np.ndarray:
    """(B, T) -> (B, E): what stays, moved to the left; both masks are read row by row, so the order is kept."""
    table = np.full(used.shape, fill, dtype=np.int64)
    table[used] = content[stays]
    return table


class SpanCorruption(LanguageTask):
    """Restore hidden spans with an encoder-decoder.

    `density`: the share of tokens that are hidden. `mean_span`: mean tokens of a span. Both as in T5.

    Loss, perplexity and accuracy are over all targets, sentinels and the end included. Word perplexity and bits per
    byte are over the hidden text tokens alone and *pseudo*: a token is predicted from both sides, so they compare with
    those of a masked LM at the same rate, not with a causal LM's.
    """

    architectures = (EncoderDecoder,)
    converses = False  # each text is answered for itself
    headline = ("loss", "perplexity", "accuracy", "word_perplexity", "bits_per_byte")

    def __init__(self, *args, density: float = 0.15, mean_span: float = 3.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < density < 1 or mean_span < 1:
            raise UserError(
                f"task.density={density} task.mean_span={mean_span}; a share between 0 and 1 and at least 1 token are "
                "needed; type task.density=0.15 task.mean_span=3"
            )
        self.density, self.mean_span = density, mean_span
        self.head = language_head(self.model)
        self.collator()  # a tokenizer without sentinels is found before anything is trained

    def collator(self) -> SpanCollator:
        return SpanCollator(self.facts.tokenizer, self.density, self.mean_span)

    def lengths(self, tokens: int) -> tuple[int, int]:
        """Encoder and decoder tokens that a block of `tokens` becomes (for counting FLOPs)."""
        hidden, spans = (int(count[0]) for count in span_counts(np.array([tokens]), self.density, self.mean_span))
        return tokens - hidden + spans, hidden + spans + 1

    def check_length(self, tokens: int, key: str) -> None:
        super().check_length(tokens, key)
        self.collator().check(tokens)

    def training_flops(self, tokens: int) -> float:
        encoder, decoder = self.lengths(tokens)
        per_token = flops_per_token(self.model.config, encoder, self.model.kind, target_length=decoder)
        return per_token * (encoder + decoder) / tokens

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        names = ("input_ids", "decoder_input_ids", "attention_mask", "document_ids", "decoder_document_ids")
        return {name: batch[name] for name in names if name in batch}

    def step(self, batch: Batch) -> StepOutput:
        hidden = self.model.hidden(**self.model_inputs(batch))  # (B, D, C)
        rows, labels = hidden.flatten(0, 1), batch["labels"].flatten()
        if self.training:
            return self.training_loss(rows, labels)
        logits = self.head(rows)
        output = self.vocabulary_loss(logits, labels)
        text = torch.where(batch["is_text"].flatten(), labels, IGNORED)
        text_loss = F.cross_entropy(logits, text, ignore_index=IGNORED, reduction="sum")
        output.sums["text_loss"] = (text_loss, (text != IGNORED).sum())
        return output

    def report(self, means: dict[str, float], stage: str) -> dict[str, float]:
        of_text = super().report({"loss": means["text_loss"]}, stage)
        metrics = super().report({name: mean for name, mean in means.items() if name != "text_loss"}, stage)
        return metrics | {name: of_text[name] for name in ("word_perplexity", "bits_per_byte") if name in of_text}

    def reader(self, inputs: Batch) -> MemoryReader:
        """What `generation.decode` calls; see tasks/reader.py. `inputs`: one document a row."""
        return MemoryReader(self.model, self.head, inputs)

    def question(self, text: str) -> Question:
        """A text with blanks, `___` or `<extra_id_0>`; one without is read as it is, and anything may be written.

        Raises UserError for an empty text, more blanks than sentinels, or more tokens than the model has positions.
        """
        tokenizer, pieces = self.facts.tokenizer, pieces_of(text)
        ids = encoded(pieces, tokenizer) if pieces else tokenizer.encode(text).tolist()
        if not ids:
            raise UserError("the prompt is empty; give a text with blanks, e.g. 'the ___ fox jumps'")
        return Question(text, check_room(ids, self.model.config.max_length), pieces=pieces)

    def open(self, questions: list[Question], max_new_tokens: int) -> Opening:
        """The texts go through the encoder, padded on the right; the decoder begins with its start token."""
        tokenizer, start = self.facts.tokenizer, self.collator().start_id
        rows = [np.array(question.ids) for question in questions]
        tokens = pad(rows, start)
        present = real(rows, tokens.shape[1])
        inputs = {"input_ids": tokens, "attention_mask": None if present.all() else present}
        inputs = {name: value.to(self.device) for name, value in tensors(inputs).items()}
        blanks = [question.blanks for question in questions]
        rules = ()
        if any(blanks):
            rules = (BlankOrder(blanks, tokenizer, max_new_tokens),)
        return Opening(self.reader(inputs), torch.full((len(rows), 1), start, device=self.device), rules=rules)

    def answer(self, question: Question, ids: list[int]) -> tuple[str, list[str]]:
        """The text with its blanks filled by what was written (`ids`), and each fill."""
        texts = fills(ids, question.pieces, self.facts.tokenizer)
        return filled(question.pieces, texts), texts

    def samples(self, batch: Batch, decode, limit: int = 4) -> list[tuple[str, str]]:
        """Blocks with their sentinels, and what the model writes for them. Documents in a block are read as one."""
        inputs = {name: batch[name][:limit] for name in ("input_ids", "attention_mask") if name in batch}
        start = batch["decoder_input_ids"][:limit, :1]
        written = decode(self.reader(inputs), start, max_new_tokens=batch["labels"].shape[1])  # (B, D)
        return [
            (self._shown(asked), self._shown(said)) for asked, said in zip(inputs["input_ids"], written, strict=True)
        ]

    def _shown(self, tokens: Tensor) -> str:
        """Text with its sentinels, without padding."""
        tokenizer = self.facts.tokenizer
        return tokenizer.decode(tokens[tokens != tokenizer.pad_id].tolist(), skip_special=False)
