"""Perplexity of a causal model with sliding windows: every token is scored once, with much of what stands before it.

In blocks that stand side by side the first tokens of each are predicted from nearly nothing. Windows overlap instead:
the first scores all its tokens, each next one begins `stride` tokens later and scores its last `stride` tokens, which
so see at least `context - stride` tokens before them. With stride 1 each sees all it can; with stride = context the
windows are blocks side by side.

A document is read from its separator on, and predicts its tokens and the next separator: as many targets as the split
has tokens. Where training let attention cross documents, the split is one text.

Letters: N windows, B of them a batch, T tokens, D documents, S tokens of the split.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from lit_tfm.data.bucketing import cut
from lit_tfm.data.sampling import choose
from lit_tfm.data.store import TokenStore
from lit_tfm.errors import UserError
from lit_tfm.evaluation.scoring import Tick, Units, check_finite, token_losses
from lit_tfm.evaluation.subject import Subject

LEAST_DOCUMENTS = 30  # fewer are too few to be drawn from: blocks of `context` tokens stand in for them
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Windows:
    """Places in the split's stream, (N,) each: inputs [begin, end), each with the next token as its target.

    Targets count from input `scored` on.
    """

    begin: np.ndarray
    scored: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def targets(self) -> int:
        return int((self.end - self.scored).sum())

    def some(self, limit: int) -> "Windows":
        """So many of them at most, always the same ones."""
        chosen = choose(len(self), limit)
        return Windows(self.begin[chosen], self.scored[chosen], self.end[chosen])


def slide(starts: np.ndarray, sizes: np.ndarray, context: int, stride: int) -> Windows:
    """The windows of texts of `sizes` (D,) inputs that begin at `starts` (D,)."""
    if not 1 <= stride <= context:
        raise UserError(f"--stride {stride}: at least 1 and at most the context, {context} tokens")
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    each = 1 + np.maximum(0, -(-(sizes - context) // stride))  # (D,) windows of a text
    text = np.repeat(np.arange(len(sizes)), each)  # (N,)
    nth = np.arange(len(text)) - np.repeat(np.cumsum(each) - each, each)
    begin = nth * stride
    end = np.minimum(begin + context, sizes[text])
    scored = np.where(nth > 0, begin - stride + context, 0)
    return Windows(starts[text] + begin, starts[text] + scored, starts[text] + end)


def windows_of(store: TokenStore, context: int, stride: int, cross_documents: bool) -> Windows:
    """Windows over a stored split."""
    if cross_documents:
        return slide(np.array([0]), np.array([len(store.tokens)]), context, stride)
    return slide(store.offsets[:-1], np.diff(store.offsets), context, stride)


def batched(windows: Windows, budget: int = TOKENS_AT_ONCE) -> Iterator[np.ndarray]:
    """Numbers (B,) of windows of similar length, at most `budget` tokens with their padding."""
    lengths = windows.end - windows.begin
    order = np.argsort(lengths, kind="stable")
    for first, last in pairwise(cut(lengths[order], budget, None)):
        yield order[first:last]


@torch.inference_mode()
def score(subject: Subject, store: TokenStore, windows: Windows, tick: Tick) -> tuple[np.ndarray, np.ndarray]:
    """Loss in nats and hit of every token that is a target, (S,) each, by the place of its input; NaN where none is.

    The last token of the split predicts the first, a separator as at the end of any document.
    """
    task, total = subject.task, len(store.tokens)
    losses, hits = np.full(total, np.nan), np.zeros(total, dtype=bool)
    for chosen in batched(windows):
        begin, scored, end = (part[chosen, None] for part in (windows.begin, windows.scored, windows.end))
        place = begin + np.arange(int((end - begin).max()))  # (B, T) padding at the right, where no real token looks
        wanted = (place >= scored) & (place < end)
        inputs, targets = (np.asarray(store.tokens)[(place + shift) % total].astype(np.int64) for shift in (0, 1))
        on_device = subject.moved({"ids": torch.from_numpy(inputs), "labels": torch.from_numpy(targets[wanted])})
        with subject.autocast():
            hidden = task.model.hidden(on_device["ids"])  # (B, T, C)
            logits = task.head(hidden[torch.from_numpy(wanted).to(hidden.device)])
        loss, hit = token_losses(logits, on_device["labels"])
        check_finite(loss)
        losses[place[wanted]], hits[place[wanted]] = loss.double().cpu().numpy(), hit.cpu().numpy()
        tick(int(wanted.sum()))
    return losses, hits


def units(store: TokenStore, losses: np.ndarray, hits: np.ndarray, context: int) -> Units:
    """Sums by document; by stretches of `context` tokens where there are too few documents."""
    total = len(losses)
    documents = np.unique(store.offsets[:-1])
    many = len(documents) >= LEAST_DOCUMENTS
    starts = documents if many else np.arange(0, total, context)
    scored = ~np.isnan(losses)
    targets, nats, right = (
        np.add.reduceat(values.astype(np.float64), starts) for values in (scored, np.where(scored, losses, 0.0), hits)
    )
    index = np.flatnonzero(targets)  # a limit leaves some out
    sums = {"loss": (nats[index], targets[index]), "accuracy": (right[index], targets[index])}
    return Units("document" if many else "block", sums, index)
