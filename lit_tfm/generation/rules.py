"""Rules: what a row has read changes which token it may write next.

A rule is called with the logits (B, V) and the `History` of the rows, and gives new logits: `RepetitionPenalty` here,
`BlankOrder` in tasks/blanks.py. Rules come before temperature and cuts, and a beam search gives them log-probabilities
(for logits), both as in Hugging Face's `generate`.

Letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_tfm.errors import UserError


class History(NamedTuple):
    tokens: Tensor  # (B, T) what the row has read, and what it wrote, from `start` on
    present: Tensor | None  # (B, start) bool, False for padding on the left; None: there is none
    start: int
    prompts: Tensor  # (B,) number of the prompt that the row goes on with


Rule = Callable[[Tensor, History], Tensor]


class RepetitionPenalty:
    """Logits of tokens that were read or written are divided by `penalty`, or multiplied where negative (Keskar et al.
    2019, CTRL, section 4.1, in the form everyone uses). Padding counts for nothing."""

    def __init__(self, penalty: float) -> None:
        if not penalty > 0:
            raise UserError(f"repetition penalty {penalty}; a number above 0 is needed (1: none); type e.g. 1.2")
        self.penalty = penalty

    def __call__(self, logits: Tensor, history: History) -> Tensor:
        rows, vocabulary = logits.shape
        tokens = history.tokens
        if history.present is not None:
            padding = torch.zeros_like(tokens, dtype=torch.bool)
            padding[:, : history.start] = ~history.present
            tokens = tokens.masked_fill(padding, vocabulary)  # a column that is cut off again
        seen = torch.zeros(rows, vocabulary + 1, dtype=torch.bool, device=logits.device).scatter(1, tokens, True)
        changed = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return torch.where(seen[:, :vocabulary], changed, logits)


def follow(rules: tuple[Rule, ...], logits: Tensor, history: History) -> Tensor:
    """The logits after all rules, in their order."""
    for rule in rules:
        logits = rule(logits, history)
    return logits
