"""Batches of labelled texts: `[cls] a [sep]`, or `[cls] a [sep] b [sep]` where an example has two.

Letters: B examples, T tokens, L labels.
"""

import numpy as np

from lit_tfm.data.noise import uniform
from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.errors import UserError
from lit_tfm.tasks.base import Batch
from lit_tfm.tasks.language import IGNORED, pad, real, tensors

DROP = 0  # stream of the counter-based noise


class TextCollator:
    """Labelled texts -> input_ids, padded at the right to the longest of the batch, and labels.

    `lead`: open with the cls token (an encoder may read its answer there). `max_length`: tokens a model can take; what
    is beyond is cut off, of two texts first from the longer one. `dropout`: the share of tokens that `dropped` (B, T)
    marks, a pure function of (seed, epoch, example); to use it is the task's business, as only training does.
    """

    extra_tokens = 0

    def __init__(self, tokenizer: Tokenizer, lead: bool, max_length: int, dropout: float = 0.0) -> None:
        tokenizer.require("sep", *(["cls"] if lead else []), task="classification")
        self.start = [tokenizer.cls_id] if lead else []
        self.end = [tokenizer.sep_id]
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.sep_id
        self.special = np.array([i for i in (tokenizer.cls_id, tokenizer.sep_id, self.pad_id) if i is not None])
        self.max_length, self.dropout, self.seed = max_length, dropout, 0
        if max_length <= self.special_tokens(pair=True):
            raise UserError(
                f"model.max_length={max_length} leaves no room for a text beside the special tokens; "
                "type e.g. model.max_length=128"
            )

    def special_tokens(self, pair: bool) -> int:
        """How many tokens an example has beside those of its texts."""
        return len(self.start) + (2 if pair else 1)

    def __call__(self, examples: list[dict]) -> Batch:
        parts = [self._join(example["tokens"], example.get("tokens_b")) for example in examples]
        rows = [row for row, _ in parts]
        tokens = pad(rows, self.pad_id)  # (B, T)
        present = real(rows, tokens.shape[1])
        counted = np.array([not example["key"].filler for example in examples])
        second = np.array([second for _, second in parts])
        pairs = any(example.get("tokens_b") is not None for example in examples)
        return tensors(
            {
                "input_ids": tokens,
                "attention_mask": None if present.all() else present,
                "segment_ids": self._segments(second, present) if pairs else None,
                "dropped": self._dropped(tokens, examples) if self.dropout else None,
                "labels": self._labels(examples, counted),
                "counted": counted,
                "n_tokens": int((present & counted[:, None]).sum()),
            }
        )

    def _join(self, a: np.ndarray, b: np.ndarray | None) -> tuple[np.ndarray, int]:
        """The row of an example, and where its second text begins."""
        room = self.max_length - self.special_tokens(pair=b is not None)
        if b is None:
            row = np.concatenate([self.start, a[:room], self.end])
            return row, len(row)
        if len(a) + len(b) > room:  # the longer one gives until both are equal, then both do
            keep_a = min(len(a), max(room - len(b), (room + 1) // 2))
            a, b = a[:keep_a], b[: room - keep_a]
        first = np.concatenate([self.start, a, self.end])
        return np.concatenate([first, b, self.end]), len(first)

    def _segments(self, second: np.ndarray, present: np.ndarray) -> np.ndarray:
        """(B, T) 0 for the first text, 1 for the second (BERT's token types)."""
        return ((np.arange(present.shape[1]) >= second[:, None]) & present).astype(np.int64)

    def _dropped(self, tokens: np.ndarray, examples: list[dict]) -> np.ndarray:
        keys = [example["key"] for example in examples]
        epochs, indices = np.array([k.epoch for k in keys]), np.array([k.index for k in keys])
        draw = uniform(self.seed, epochs, indices, DROP, tokens.shape[1])
        return (draw < self.dropout) & ~np.isin(tokens, self.special)

    def _labels(self, examples: list[dict], counted: np.ndarray) -> np.ndarray:
        """(B,) class numbers, or (B, L) 0/1; `IGNORED` all over for a filler."""
        labels = np.array([example["label"] for example in examples], dtype=np.int64)
        labels[~counted] = IGNORED
        return labels
