"""Attention: one class for self and cross, causal or not, grouped heads, with or without a cache.

`attend` is the way every model takes; `attend_explicit` is its twin that spells the softmax out and gives the weights.

Shape letters: B batch, T tokens (queries), S memory tokens (keys), H heads, K key-value heads, D head dim, C model dim.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from lit_tfm.nn.cache import LayerCache
from lit_tfm.nn.dropout import dropout as drop
from lit_tfm.nn.masks import Mask
from lit_tfm.nn.norm import Norm
from lit_tfm.nn.positions import Positions
from lit_tfm.nn.products import Linear


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Mask, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """queries (B, H, T, D), keys and values (B, K, S, D) -> (B, H, T, D). `scale` None: 1 / sqrt(D)."""
    if dropout and mask.blocks is None and queries.device.type == "cpu" and not torch.compiler.is_compiling():
        # No kernel of a CPU's drops weights: SDPA would spell the same out, with slower random numbers.
        return attend_explicit(queries, keys, values, mask, scale=scale, dropout=dropout)[0]
    grouped = keys.size(1) != queries.size(1)
    if mask.blocks is not None:
        flex = _compiled_flex() if queries.is_cuda and not torch.compiler.is_compiling() else flex_attention
        return flex(queries, keys, values, block_mask=mask.blocks, scale=scale, enable_gqa=grouped)
    if grouped and queries.is_cuda and mask.tensor is not None:
        # CUDA: the memory-efficient kernel knows no groups, flash knows no masks; left to itself SDPA would fall back
        # to the math path, which stores all T x S weights.
        keys, values, grouped = *_ungroup(queries, keys, values), False
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask.tensor,
        dropout_p=dropout,
        is_causal=mask.is_causal,
        scale=scale,
        enable_gqa=grouped,
    )


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    """Left uncompiled, flex attention stores all T x S weights."""
    return torch.compile(flex_attention)


def attend_explicit(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Mask, *, scale: float | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `attend`, and the weights (B, H, T, S) before dropout. Softmax in float32; queries that see nothing give 0."""
    if mask.blocks is not None:
        raise ValueError("weights are not to be had by blocks: give the mask of self_mask")
    keys, values = _ungroup(queries, keys, values)
    scale = queries.size(-1) ** -0.5 if scale is None else scale
    logits = (queries * scale @ keys.transpose(-2, -1)).float()  # (B, H, T, S); there are fewer queries than logits
    visible, blind = mask.tensor, None
    if mask.is_causal:
        visible = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if visible is not None and visible.dtype == torch.bool:
        logits = logits.masked_fill(~visible, -torch.inf)
    elif visible is not None:
        logits = logits + visible
    if mask.tensor is not None:  # a softmax over nothing, and its gradient, are no numbers
        hidden = ~visible if visible.dtype == torch.bool else visible == -torch.inf
        blind = hidden.all(dim=-1, keepdim=True)  # (1|B, 1|H, T, 1)
        logits = logits.masked_fill(blind, 0.0)
    weights = logits.softmax(dim=-1)
    weights = weights if blind is None else weights.masked_fill(blind, 0.0)
    return drop(weights, dropout).to(values.dtype) @ values, weights


def _ungroup(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat each key-value head for its group of query heads: (B, K, S, D) -> (B, H, S, D)."""
    share = queries.size(1) // keys.size(1)
    if share == 1:
        return keys, values
    return keys.repeat_interleave(share, dim=1), values.repeat_interleave(share, dim=1)


class Attention(nn.Module):
    """Multi-head attention with `n_kv_heads` shared key-value heads (Ainslie et al. 2023).

    Self-attention (`cross=False`) projects queries, keys and values by one matrix, in this order. Cross-attention takes
    its keys and values from `memory`, by one matrix; it has neither positions nor value embeddings.

    `qk_norm`: queries and keys are normalised per head (Henry et al. 2020; RMS as in Dehghani et al. 2023); `qk_gain`
    adds learned gains. `scale` multiplies the logits, None: 1 / sqrt(head_dim).
    `value_embeddings`: a row per token (B, T, K * D) is added to the values, times a learned number started at 0.5.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        cross: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        qk_norm: bool = False,
        qk_gain: bool = False,
        norm_eps: float = 1e-6,
        scale: float | None = None,
        value_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads or n_heads
        self.head_dim = head_dim or d_model // n_heads
        self.cross, self.dropout, self.scale = cross, dropout, scale
        queries, both = self.n_heads * self.head_dim, 2 * self.n_kv_heads * self.head_dim
        if cross:
            self.q = Linear(d_model, queries, bias=bias)
            self.kv = Linear(d_model, both, bias=bias)
        else:
            self.qkv = Linear(d_model, queries + both, bias=bias)
        for projection in (self.q, self.kv) if cross else (self.qkv,):
            projection.weight_parts = (self.head_dim,) * (projection.out_features // self.head_dim)
        self.output = Linear(queries, d_model, bias=bias)
        gains = [Norm(self.head_dim, "rms", weight=qk_gain, eps=norm_eps) if qk_norm else None for _ in range(2)]
        self.q_norm, self.k_norm = gains
        self.value_gain = nn.Parameter(torch.full((1,), 0.5)) if value_embeddings and not cross else None

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Mask,
        positions: Positions | None = None,
        values: Tensor | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
        explicit: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, C), memory (B, S, C) -> (B, T, C) and, when `explicit`, the weights (B, H, T, S).

        `positions` turns queries and keys; `values` (B, T, K * D) are value embeddings; with a `cache` the keys and
        values of x are written at `start` and all before them are attended to as well.
        """
        q, k, v = self._from_memory(x, memory, cache) if self.cross else self._from_self(x, positions, values, start)
        if cache is not None and not self.cross:
            k, v = cache.extend(k, v, start)
        dropout, weights = self.dropout if self.training else 0.0, None
        if explicit:
            out, weights = attend_explicit(q, k, v, mask, scale=self.scale, dropout=dropout)
        else:
            out = attend(q, k, v, mask, scale=self.scale, dropout=dropout)
        out = out.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, H * D)
        return self.output(out), weights

    def _from_self(
        self, x: Tensor, positions: Positions | None, values: Tensor | None, start: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads, groups = self.n_heads, self.n_kv_heads
        qkv = self.qkv(x).unflatten(-1, (heads + 2 * groups, self.head_dim))  # (B, T, H + 2K, D)
        qk, v = qkv.split((heads + groups, groups), dim=2)
        if self.value_gain is not None:
            v = v + (self.value_gain * values.unflatten(-1, (groups, self.head_dim))).to(v.dtype)  # autocast: a float32
        qk = self._normed(qk)
        if positions is not None:
            qk = positions.rotate(qk, start)
        q, k = qk.to(v.dtype).split((heads, groups), dim=2)  # autocast: the rotation is done in float32
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, T, heads, D) -> (B, heads, T, D)

    def _normed(self, qk: Tensor) -> Tensor:
        """Queries and keys together: without gains one kernel does both."""
        if self.q_norm is None:
            return qk
        if self.q_norm.weight is None:
            return self.q_norm(qk)
        q, k = qk.split((self.n_heads, self.n_kv_heads), dim=2)
        return torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)

    def _from_memory(self, x: Tensor, memory: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x).unflatten(-1, (self.n_heads, self.head_dim))  # (B, T, H, D)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if cache is not None and cache.memory is not None:
            k, v = cache.memory
        else:
            kv = self.kv(memory).unflatten(-1, (2 * self.n_kv_heads, self.head_dim))  # (B, S, 2K, D)
            k, v = kv.transpose(1, 2).chunk(2, dim=1)  # 2 x (B, K, S, D)
            k = k if self.k_norm is None else self.k_norm(k)
            if cache is not None:
                cache.memory = (k, v)
        return q.transpose(1, 2).to(v.dtype), k.to(v.dtype), v
