"""The decode loop: token after token, for a decoder and for the decoder of an encoder-decoder alike.

The loop knows no model. It calls a *reader*, which a task makes (`CausalLM.reader`, `SpanCorruption.reader`): it takes
the tokens it has not seen yet, (B, n), keeps those it has seen in its cache, and gives the next one's logits (B, V).

Letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_tfm.generation.sampling import GREEDY, Sampling

Reader = Callable[[Tensor], Tensor]


@torch.no_grad()
def decode(
    read: Reader,
    prompt: Tensor,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_id: int | None = None,
    pad_id: int = 0,
    lockstep: bool = False,
) -> Tensor:
    """Tokens (B, n) that follow `prompt` (B, T), n <= max_new_tokens.

    A row ends with its `stop_id`, followed by `pad_id`; the loop ends with the last row. `lockstep` makes all
    `max_new_tokens` steps anyway: under FSDP ranks wait for each other in every step, and must make the same number.
    """
    logits, written = read(prompt), []
    going = torch.ones(len(prompt), dtype=torch.bool, device=prompt.device)
    for position in range(max_new_tokens):
        token = sampling.choose(logits, position).masked_fill(~going, pad_id)  # (B,)
        written.append(token)
        if stop_id is not None:
            going = going & (token != stop_id)
            if not lockstep and not going.any():
                break
        if position + 1 < max_new_tokens:
            logits = read(token[:, None])
    if not written:
        return prompt[:, :0]
    return torch.stack(written, dim=1)
