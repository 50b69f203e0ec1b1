"""Texts with blanks, as a person types them: `the ___ fox` or `the <extra_id_0> fox`, filled by a span-filling model.

Letters: B rows, T tokens, V vocabulary.
"""

import re
from itertools import zip_longest

import torch
from torch import Tensor

from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.errors import UserError

BLANK = re.compile(r"_{3,}|<extra_id_\d+>")


def pieces_of(text: str) -> tuple[str, ...]:
    """The text around its blanks; () where it has none."""
    pieces = tuple(BLANK.split(text))
    return pieces if len(pieces) > 1 else ()


def encoded(pieces: tuple[str, ...], tokenizer: Tokenizer) -> list[int]:
    """Ids of the pieces with a sentinel between each two, numbered from left to right whatever was typed."""
    if len(pieces) - 1 > len(tokenizer.sentinel_ids):
        raise UserError(
            f"the prompt has {len(pieces) - 1} blanks, and the model knows {len(tokenizer.sentinel_ids)} sentinels; "
            "give fewer blanks at a time"
        )
    rows = tokenizer.encode_batch([_leading(piece, tokenizer) for piece in pieces[:-1]] + [pieces[-1]])
    ids: list[int] = []
    for row, sentinel in zip_longest(rows, tokenizer.sentinel_ids[: len(pieces) - 1]):
        ids += row.tolist() + ([] if sentinel is None else [sentinel])
    return ids


def _leading(piece: str, tokenizer: Tokenizer) -> str:
    """Without the blank before a gap where the tokenizer writes it with the word that follows, i.e. in the gap.

    `the ___ fox` was `the quick fox`, of the tokens `the`, `Ġquick`, `Ġfox`: the model has never seen `the`, `Ġ`, gap.
    """
    if not piece.endswith(" "):
        return piece
    vocabulary = map(tokenizer.token, range(tokenizer.vocab_size))
    return piece[:-1] if any(len(token) > 1 and token[0] in "Ġ▁" for token in vocabulary) else piece


def fills(ids: list[int], pieces: tuple[str, ...], tokenizer: Tokenizer) -> list[str]:
    """What was written for each blank, `<extra_id_0> quick <extra_id_1> over ...`, as it stands in the text."""
    count = len(pieces) - 1
    spans: list[list[int]] = [[] for _ in range(count)]
    number = {sentinel: k for k, sentinel in enumerate(tokenizer.sentinel_ids)}
    at: int | None = None
    for token in ids:
        if token in number:
            at = number[token]
        elif token == tokenizer.sep_id:
            break
        elif at is not None and at < count:
            spans[at].append(token)
    texts, before = [], tokenizer.encode(_leading(pieces[0], tokenizer)).tolist()[-8:]
    for k, span in enumerate(spans):
        # Behind some text, so that a word's first token brings the blank before it.
        written = tokenizer.decode([*before, *span])[len(tokenizer.decode(before)) :]
        if pieces[k][-1:].isspace() or (k == 0 and not pieces[k]):
            written = written.lstrip(" ")
        if pieces[k + 1][:1].isspace():
            written = written.rstrip(" ")
        texts.append(written)
        before = [*before, *span, *tokenizer.encode(_leading(pieces[k + 1], tokenizer)).tolist()][-8:]
    return texts


def filled(pieces: tuple[str, ...], texts: list[str]) -> str:
    """The text as it was typed, with its blanks filled."""
    return "".join(piece + text for piece, text in zip_longest(pieces, texts, fillvalue=""))


class BlankOrder:
    """A rule of generation: the blanks of each row are filled one after the other, with a token or more, then the end.

    What a model learns to write anyway, given to it before it has learnt it well. Blanks share `max_new_tokens`, which
    counts a sentinel each and the end, evenly. Rows without blanks write what they like.
    """

    def __init__(self, blanks: list[int], tokenizer: Tokenizer, max_new_tokens: int) -> None:
        self.blanks = torch.tensor(blanks)
        self.longest = ((max_new_tokens - 1) // self.blanks.clamp(min=1) - 1).clamp(min=1)  # tokens of a blank
        self.sentinels, self.end = torch.tensor(tokenizer.sentinel_ids), tokenizer.sep_id
        special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.sep_id, *tokenizer.sentinel_ids)
        self.special = torch.tensor(sorted({i for i in special if i is not None}))

    def __call__(self, logits: Tensor, history) -> Tensor:
        device = logits.device
        count = self.blanks.to(device)[history.prompts]  # (B,)
        sentinels = self.sentinels.to(device)
        written = history.tokens[:, history.start :]  # (B, T)
        marks = torch.isin(written, sentinels)
        opened = marks.sum(1)  # (B,) blanks begun
        inside = written.shape[1] - _last(marks)  # (B,) tokens written since
        may_go_on = (opened > 0) & (inside > 0)  # a blank is filled by something
        must_go_on = (opened == 0) | (inside >= self.longest.to(device)[history.prompts])
        allowed = torch.ones_like(logits, dtype=torch.bool)  # (B, V)
        allowed[:, self.special.to(device)] = False
        allowed &= ~must_go_on[:, None]
        following = torch.where(opened < count, sentinels[opened.clamp(max=len(sentinels) - 1)], self.end)  # (B,)
        allowed.scatter_(1, following[:, None], (may_go_on | must_go_on)[:, None])
        return logits.masked_fill(~allowed & (count > 0)[:, None], -torch.inf)


def _last(marks: Tensor) -> Tensor:
    """(B, T) bool -> (B,) how many entries there are up to the last True, 0 where there is none."""
    order = torch.arange(1, marks.shape[1] + 1, device=marks.device)
    return (marks * order).amax(1) if marks.shape[1] else torch.zeros(len(marks), dtype=torch.long, device=marks.device)
