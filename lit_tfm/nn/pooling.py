"""One vector for a text: (B, T, C) and a mask (B, T) -> (B, C). True means may be seen; a row without any gives zeros.

Shape letters: B batch, T tokens, C model dim.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def mean(x: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is None:
        return x.mean(dim=1)
    weight = mask.to(x.dtype)[..., None]  # (B, T, 1)
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def max(x: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is None:
        return x.amax(dim=1)
    top = x.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
    return top.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


def first(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The first token that may be seen, wherever the padding is."""
    return x[:, 0] if mask is None else _pick(x, mask, mask.int().argmax(dim=1))


def last(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The last token that may be seen: all a decoder knows of the text."""
    if mask is None:
        return x[:, -1]
    return _pick(x, mask, (mask * torch.arange(mask.size(1), device=mask.device)).argmax(dim=1))


def _pick(x: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    rows = torch.arange(len(x), device=x.device)
    return x[rows, index] * mask[rows, index, None]


POOLINGS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "mean": mean,
    "max": max,
    "first": first,
    "last": last,
}
