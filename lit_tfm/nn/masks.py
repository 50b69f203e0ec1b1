"""Who may see whom, built once per forward by the model and shared by its layers. True means MAY BE SEEN.

A `Mask` is what `F.scaled_dot_product_attention` wants: no tensor at all wherever possible (its `is_causal` path is the
fast one), else a boolean tensor, else a float one when a position bias has to be added to the logits. Of packed
documents it may be a `BlockMask` instead, for flex attention: blocks of which nothing is seen are not computed.

Shape letters: B batch, T queries, S keys, H heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


class Mask(NamedTuple):
    tensor: Tensor | None = None  # bool (1|B, 1, T, S), or float (1|B, H, T, S) added to the logits
    is_causal: bool = False  # only ever with `tensor` None: SDPA takes one or the other
    blocks: BlockMask | None = None  # only ever alone


def self_mask(
    queries: int,
    keys: int,
    *,
    causal: bool,
    start: int = 0,
    seen: Tensor | None = None,
    documents: Tensor | None = None,
    bias: Tensor | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Mask:
    """The mask of self-attention for queries at start .. start + T and keys at 0 .. S.

    `seen` (B, S) bool: keys that are no padding. `documents` (B, T): tokens see their own document only (needs T = S).
    `bias` (H, T, S): position bias. `dtype`: that of the queries, which SDPA asks of a float mask.
    """
    if seen is None and documents is None:
        if not causal or queries == 1:  # one query, the newest: every key is in its past
            visible = None
        elif start == 0 and bias is None:
            return Mask(None, is_causal=True)
        else:
            visible = _past(queries, keys, start, device)[None, None]  # (1, 1, T, S)
        return _finish(visible, bias, dtype)
    visible = _together(seen, documents, documents)  # (B, T|1, S)
    if causal:
        visible = visible & _past(queries, keys, start, device)
    # A token always sees itself: a padding token would otherwise have nothing to see, a softmax over nothing.
    return _finish((visible | _itself(queries, keys, start, device))[:, None], bias, dtype)


def document_mask(documents: Tensor, *, causal: bool, seen: Tensor | None = None) -> Mask:
    """As `self_mask` with `documents` (B, T), and `seen` (B, T), by blocks: for flex attention."""

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        may = documents[row, query] == documents[row, key]
        if seen is not None:
            may = may & (seen[row, key] | (query == key))
        return may & (query >= key) if causal else may

    batch, tokens = documents.shape
    return Mask(blocks=create_block_mask(visible, batch, None, tokens, tokens, device=documents.device))


def cross_mask(
    seen: Tensor | None = None, documents: Tensor | None = None, memory_documents: Tensor | None = None
) -> Mask:
    """The mask of cross-attention: `seen` (B, S) of the memory, `documents` (B, T) and `memory_documents` (B, S).

    A query whose document has no memory sees nothing: SDPA and the explicit twin then give zeros.
    """
    if documents is None or memory_documents is None:
        documents = memory_documents = None
    if seen is None and documents is None:
        return Mask()
    return Mask(_together(seen, documents, memory_documents)[:, None])


def leading_padding(seen: Tensor) -> Tensor:
    """How many tokens of padding each row of (B, S) starts with: (B,)."""
    return (seen.cumsum(dim=1) == 0).sum(dim=1)


def _together(seen: Tensor | None, documents: Tensor | None, key_documents: Tensor | None) -> Tensor:
    """(B, T|1, S) bool."""
    if documents is None:
        return seen[:, None, :]
    same = documents[:, :, None] == key_documents[:, None, :]
    return same if seen is None else same & seen[:, None, :]


def _past(queries: int, keys: int, start: int, device: torch.device | None) -> Tensor:
    """(T, S) bool: keys not after the query."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(start)


def _itself(queries: int, keys: int, start: int, device: torch.device | None) -> Tensor:
    """(T, S) bool: the key is the query's own token."""
    position = torch.arange(start, start + queries, device=device)
    return position[:, None] == torch.arange(keys, device=device)


def _finish(visible: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Mask:
    if bias is None:
        return Mask(visible)
    bias = bias[None]  # (1, H, T, S)
    if visible is not None:
        bias = bias.masked_fill(~visible, -torch.inf)  # (1|B, H, T, S)
    return Mask(bias.to(dtype))
