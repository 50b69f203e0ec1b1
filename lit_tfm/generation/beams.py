"""Beam search: the likeliest texts, as far as keeping the `width` best beginnings finds them.

The procedure is that of Hugging Face's `generate`, so that both find the same texts: of all continuations of the
`width` running beams the 2 `width` likeliest are looked at; those that end and are among the first `width` become
finished texts, scored by log-probability / tokens ** length_penalty; the best that do not end run on.

Letters: P prompts, N beams of each (the width), T tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_tfm.errors import UserError
from lit_tfm.generation.rules import History, Rule, follow

NEVER = -1e9  # a score no text has
EARLY = (False, True, "never")


@dataclass(frozen=True)
class Beams:
    """`width` beams. `length_penalty`: 0 ranks by log-probability, 1 by its mean a token; larger favours longer texts.

    `early_stopping` True: a prompt is done when it has `width` finished texts. False: when the best running beam, at
    the length it has, scores worse than the worst of them. "never": when it can't come to score better (exact for
    length_penalty >= 0; the most work).
    """

    width: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        if self.width < 1 or not math.isfinite(self.length_penalty) or self.early_stopping not in EARLY:
            raise UserError(
                f"beams={self.width} length_penalty={self.length_penalty} early_stopping={self.early_stopping}; "
                "a whole number of at least 1, a number, and one of false, true, never are needed"
            )


class Found(NamedTuple):
    """One text: `tokens` (T,) with its end token, their log-probabilities (T,) before rules, and the score."""

    tokens: Tensor
    likely: Tensor
    score: float


class Texts(NamedTuple):
    """Some texts of each prompt. Tensors with T are longer than what is written."""

    tokens: Tensor  # (P, K, T)
    likely: Tensor  # (P, K, T)
    scores: Tensor  # (P, K)
    lengths: Tensor  # (P, K)
    done: Tensor  # (P, K) bool

    def pick(self, index: Tensor) -> "Texts":
        """Those of `index` (P, J)."""
        wide = index[:, :, None].expand(-1, -1, self.tokens.shape[2])
        return Texts(*(part.gather(1, wide if part.ndim == 3 else index) for part in self))

    def beside(self, others: "Texts") -> "Texts":
        return Texts(*(torch.cat(parts, dim=1) for parts in zip(self, others, strict=True)))


@torch.no_grad()
def beam_search(
    read: Callable[[Tensor], Tensor],
    prompt: Tensor,
    max_new_tokens: int,
    beams: Beams,
    stop_id: int | None = None,
    *,
    keep: int = 1,
    present: Tensor | None = None,
    rules: tuple[Rule, ...] = (),
    ended: Callable[[list[int], int], bool] | None = None,
) -> list[list[Found]]:
    """The `keep` best texts of each prompt of `prompt` (P, T), best first.

    `read`, `present` and `rules` as in `decode`; `ended(tokens, prompt)` says of a text whether it ends otherwise than
    by `stop_id`. Raises UserError where the vocabulary has less than 2 `width` tokens.
    """
    prompts, width, device = len(prompt), beams.width, prompt.device
    logits = read(prompt)  # (P, V)
    if 2 * width > logits.shape[-1]:
        most = logits.shape[-1] // 2
        raise UserError(f"{width} beams for a vocabulary of {logits.shape[-1]} tokens; {most} beams are possible")
    rows = torch.arange(prompts, device=device).repeat_interleave(width)  # (P * N,) the prompt of each
    read.reorder(rows)
    logits = logits[rows]
    seen = History(prompt[rows], None if present is None else present[rows], prompt.shape[1], rows)
    running, finished = (_blank(prompts, width, max_new_tokens, device) for _ in range(2))
    running.scores[:, 0] = 0.0  # all beams are the same yet: one of them speaks
    hopeful = torch.ones(prompts, 1, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        likely = logits.log_softmax(-1)  # (P * N, V)
        history = seen
        if rules:
            written = running.tokens[:, :, :step].flatten(0, 1)
            history = seen._replace(tokens=torch.cat([seen.tokens, written], dim=1))
        ruled = follow(rules, likely, history)
        candidates, parents = _candidates(running, likely, ruled, step)
        last = step + 1 == max_new_tokens
        candidates = candidates._replace(done=_ending(candidates, stop_id, ended, step + 1, last))
        finished = _finish(finished, candidates, hopeful, beams, step + 1)
        scores = candidates.scores + candidates.done * NEVER
        best = scores.topk(width).indices  # (P, N)
        running = candidates._replace(scores=scores).pick(best)
        hopeful = hopeful & _hope(running, finished, beams, step + 1, max_new_tokens)
        full = beams.early_stopping is True and bool(finished.done.all())
        if full or not hopeful.any() or bool(candidates.done.all()):
            break
        origin = parents.gather(1, best) + torch.arange(prompts, device=device)[:, None] * width
        read.reorder(origin.flatten(), memory=False)
        logits = read(running.tokens[:, :, step].reshape(-1, 1))
    return _found(finished, keep)


def _blank(prompts: int, width: int, length: int, device: torch.device) -> Texts:
    shape = (prompts, width)
    return Texts(
        torch.zeros(*shape, length, dtype=torch.long, device=device),
        torch.zeros(*shape, length, device=device),
        torch.full(shape, NEVER, device=device),
        torch.zeros(shape, dtype=torch.long, device=device),
        torch.zeros(shape, dtype=torch.bool, device=device),
    )


def _candidates(running: Texts, likely: Tensor, ruled: Tensor, step: int) -> tuple[Texts, Tensor]:
    """The 2 N likeliest continuations of each prompt, and the beam each comes from (P, 2 N)."""
    prompts, width = running.scores.shape
    vocabulary = ruled.shape[-1]
    total = ruled.view(prompts, width, vocabulary) + running.scores[:, :, None]
    scores, index = total.flatten(1).topk(2 * width)  # (P, 2 N)
    parents, tokens = index // vocabulary, index % vocabulary
    candidates = running.pick(parents)._replace(scores=scores)
    candidates.tokens[:, :, step] = tokens
    candidates.likely[:, :, step] = likely.view(prompts, -1).gather(1, index)
    candidates.lengths.fill_(step + 1)
    return candidates, parents


def _ending(candidates: Texts, stop_id: int | None, ended: Callable | None, length: int, last: bool) -> Tensor:
    """(P, 2 N) bool."""
    done = torch.full_like(candidates.done, last)
    if stop_id is not None:
        done |= candidates.tokens[:, :, length - 1] == stop_id
    if ended is not None:
        texts = candidates.tokens[:, :, :length].tolist()
        said = [[ended(text, number) for text in row] for number, row in enumerate(texts)]
        done |= torch.tensor(said, device=done.device)
    return done


def _finish(finished: Texts, candidates: Texts, hopeful: Tensor, beams: Beams, length: int) -> Texts:
    """The best N of the finished and of those that just ended among the first N candidates."""
    done = candidates.done.clone()
    done[:, beams.width :] = False
    scores = candidates.scores / length**beams.length_penalty
    closed = ~hopeful
    if beams.early_stopping is True:
        closed = closed | finished.done.all(1, keepdim=True)
    scores = scores + closed * NEVER + ~done * NEVER
    merged = finished.beside(candidates._replace(scores=scores, done=done))
    return merged.pick(merged.scores.topk(beams.width).indices)


def _hope(running: Texts, finished: Texts, beams: Beams, length: int, longest: int) -> Tensor:
    """(P, 1) bool: whether a running beam may yet come among the finished."""
    reach = longest if beams.early_stopping == "never" and beams.length_penalty > 0 else length
    best = running.scores[:, :1] / reach**beams.length_penalty
    worst = finished.scores.amin(1, keepdim=True).where(finished.done, NEVER)  # (P, N)
    return (best > worst).any(1, keepdim=True)


def _found(finished: Texts, keep: int) -> list[list[Found]]:
    tokens, likely = finished.tokens.cpu(), finished.likely.cpu()
    lengths, scores = finished.lengths.tolist(), finished.scores.tolist()
    return [
        [
            Found(tokens[p, k, : lengths[p][k]], likely[p, k, : lengths[p][k]], scores[p][k])
            for k in range(keep)
            if finished.done[p, k]
        ]
        for p in range(len(lengths))
    ]
