"""The decode loop: token after token, for a decoder and for the decoder of an encoder-decoder alike.

The loop knows no model. It calls a *reader*, which a task makes (tasks/reader.py): it takes the tokens it has not seen
yet, (B, n), keeps those it has seen in its cache, and gives the next one's logits (B, V).

Letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lit_tfm.generation.rules import History, Rule, follow
from lit_tfm.generation.sampling import GREEDY, Sampling

Reader = Callable[[Tensor], Tensor]
Watch = Callable[[Tensor, Tensor], Tensor | None]


@torch.no_grad()
def decode(
    read: Reader,
    prompt: Tensor,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_id: int | None = None,
    pad_id: int = 0,
    lockstep: bool = False,
    *,
    present: Tensor | None = None,
    rules: tuple[Rule, ...] = (),
    watch: Watch | None = None,
    samples: int = 1,
    rows: np.ndarray | None = None,
    first: int = 0,
) -> Tensor:
    """Tokens (B, n) that follow `prompt` (B, T), n <= max_new_tokens.

    A row ends with its `stop_id`, followed by `pad_id`; the loop ends with the last row. `lockstep` makes all
    `max_new_tokens` steps anyway: under FSDP ranks wait for each other in every step, and must make the same number.

    `present` (B, T): False for padding on the left, known to the reader already and here to `rules`.
    `watch(tokens (B,), logits (B, V))` sees each step, logits before the rules, and may say which rows end, (B,) bool.
    `samples` rows go on with each prompt, which is read once. `rows` (B * samples,) and `first` number the draws of
    `sampling` by row and position; by default both count from 0.
    """
    logits, written = read(prompt), []
    history = History(prompt, present, prompt.shape[1], torch.arange(len(prompt), device=prompt.device))
    if samples > 1:
        order = torch.arange(len(prompt), device=prompt.device).repeat_interleave(samples)
        read.reorder(order)
        logits = logits[order]
        history = History(prompt[order], None if present is None else present[order], history.start, order)
    going = torch.ones(len(logits), dtype=torch.bool, device=prompt.device)
    for position in range(max_new_tokens):
        ruled = follow(rules, logits, history)
        token = sampling.choose(ruled, first + position, rows).masked_fill(~going, pad_id)  # (B,)
        written.append(token)
        if rules:
            history = history._replace(tokens=torch.cat([history.tokens, token[:, None]], dim=1))
        if stop_id is not None:
            going = going & (token != stop_id)
        if watch is not None and (ended := watch(token, logits)) is not None:
            going = going & ~ended
        if (stop_id is not None or watch is not None) and not lockstep and not going.any():
            break
        if position + 1 < max_new_tokens:
            logits = read(token[:, None])
    if not written:
        return prompt[:, :0]
    return torch.stack(written, dim=1)
