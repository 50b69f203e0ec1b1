"""The blocks of one side of a model with all that surrounds them: positions in front, masks, the final norm behind.

Shape letters: B batch, T tokens, S memory tokens, H heads, C model dim, V vocabulary.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_tfm.models.config import TransformerConfig
from lit_tfm.nn.block import Block
from lit_tfm.nn.cache import KVCache
from lit_tfm.nn.dropout import Dropout
from lit_tfm.nn.init import init_weights
from lit_tfm.nn.masks import Mask, document_mask, leading_padding, self_mask
from lit_tfm.nn.neighbours import Neighbours
from lit_tfm.nn.norm import Norm
from lit_tfm.nn.positions import positions


class Weights(NamedTuple):
    """Attention weights, one tensor a layer."""

    own: list[Tensor]  # (B, H, T, T)
    cross: list[Tensor]  # (B, H, T, S); empty without cross-attention


class Stack(nn.Module):
    """Embedded tokens (B, T, C) -> normed hidden states (B, T, C)."""

    def __init__(self, config: TransformerConfig, n_layers: int, *, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.causal, self.checkpointing, self.compiled = causal, config.activation_checkpointing, config.compile
        self.flex = config.packed_attention == "flex"
        self.embedding_scale = config.d_model**0.5 if config.scale_embeddings else None
        self.positions = positions(
            config.positions,
            max_length=config.max_length,
            d_model=config.d_model,
            n_heads=config.n_heads,
            head_dim=config.head_dim,
            causal=causal,
            rotary_base=config.rotary_base,
            buckets=config.position_buckets,
            max_distance=config.position_max_distance,
        )
        self.embedding_norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.neighbours = None
        if config.neighbours:
            self.neighbours = Neighbours(config.d_model, config.neighbours, causal=causal)
            self.neighbours_norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.value_embedding = None
        if config.value_embeddings:
            self.value_embedding = nn.Embedding(config.vocab_size, config.n_kv_heads * config.head_dim)
        self.blocks = nn.ModuleList(_block(config, cross) for _ in range(n_layers))
        # A post-norm block ends with a norm already.
        self.norm = nn.Identity() if config.norm_position == "post" else _norm(config)
        if config.compile:
            for block in self.blocks:
                # Not torch.compile(block): that puts `_orig_mod.` into every checkpoint.
                block.compile(mode=None if config.compile is True else config.compile)

    def run(
        self,
        x: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        memory: Tensor | None = None,
        memory_mask: Mask | None = None,
        cache: KVCache | None = None,
        explicit: bool = False,
    ) -> tuple[Tensor, Weights]:
        """Hidden states, and the attention weights when `explicit` (else two empty lists)."""
        batch, tokens = input_ids.shape
        start = 0 if cache is None else cache.length
        self.positions.check(start + tokens)
        seen = attention_mask if cache is None else cache.see(attention_mask, batch, tokens)
        x = self._enter(x, start, seen, document_ids, cache)
        options = {
            "mask": self._mask(x, start, seen, document_ids, explicit),
            "memory_mask": memory_mask,
            "positions": self.positions,
            "values": None if self.value_embedding is None else self.value_embedding(input_ids),
            "start": start,
            "explicit": explicit,
        }
        # A cache changes its length every step, and each change would compile the blocks anew.
        with torch.compiler.set_stance("force_eager") if self.compiled and cache is not None else nullcontext():
            x, weights = self._through(x, memory, cache, options)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x), weights

    def _through(
        self, x: Tensor, memory: Tensor | None, cache: KVCache | None, options: dict
    ) -> tuple[Tensor, Weights]:
        """Block after block."""
        weights = Weights([], [])
        for index, block in enumerate(self.blocks):
            if self.checkpointing and self.training and cache is None:
                x, own, cross = checkpoint(block, x, memory, use_reentrant=False, **options)
            else:
                layer = None if cache is None else cache.layer(index)
                x, own, cross = block(x, memory, cache=layer, **options)
            weights.own.extend([] if own is None else [own])
            weights.cross.extend([] if cross is None else [cross])
        return x, weights

    def _enter(
        self, x: Tensor, start: int, seen: Tensor | None, documents: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        if self.positions.absolute and seen is not None:
            # Padding on the left must not move the text: positions count from its first token.
            x = self.positions.embed(x, start - leading_padding(seen))
        else:
            x = self.positions.embed(x, start)
        x = self.embedding_norm(x)
        if self.neighbours is not None:
            before = None if cache is None else cache.embedded(x)
            x = self.neighbours_norm(self.neighbours(x, before=before, seen=seen, documents=documents))
        return self.dropout(x)

    def _mask(self, x: Tensor, start: int, seen: Tensor | None, documents: Tensor | None, explicit: bool) -> Mask:
        """Built once, shared by all layers."""
        queries, keys, device = x.size(1), start + x.size(1), x.device
        if documents is not None and start:
            raise ValueError("document_ids cannot be continued from a cache: decode one document a row")
        if documents is not None and self.flex and not explicit and (x.is_cuda or not torch.is_grad_enabled()):
            return document_mask(documents, causal=self.causal, seen=seen)  # torch has no backward of it on CPUs
        return self_mask(
            queries,
            keys,
            causal=self.causal,
            start=start,
            seen=seen,
            documents=documents,
            bias=self.positions.bias(queries, keys, start),
            device=device,
            dtype=_compute_dtype(x),
        )


def _norm(config: TransformerConfig) -> Norm:
    return Norm(config.d_model, config.norm, weight=config.norm_weight, bias=config.bias, eps=config.norm_eps)


def _block(config: TransformerConfig, cross: bool) -> Block:
    return Block(
        config.d_model,
        config.n_heads,
        config.d_ff,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        cross=cross,
        norm=config.norm,
        norm_weight=config.norm_weight,
        norm_position=config.norm_position,
        norm_eps=config.norm_eps,
        activation=config.activation,
        gated=config.gated,
        qk_norm=config.qk_norm,
        attention_scale=config.attention_scale,
        value_embeddings=config.value_embeddings,
        bias=config.bias,
        dropout=config.dropout,
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype attention will run in: SDPA wants a float mask in that of its queries."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def start_weights(model: nn.Module, config: TransformerConfig) -> None:
    """Fill the weights of a whole model by its config (see nn/init.py)."""
    # Tables: embedded tokens of variance 1, or logits of variance 1 where the table is the head's as well.
    unit = config.scale_embeddings or config.tie_embeddings
    init_weights(
        model,
        std=config.init_std,
        zero_residual=config.zero_init,
        depth_scaled=config.depth_scaled_init,
        table_std=config.d_model**-0.5 if unit else 1.0,
    )
