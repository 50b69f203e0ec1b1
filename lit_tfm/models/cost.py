"""What a model costs: parameters and floating-point operations, from its config alone.

Counted as in PaLM's appendix B (Chowdhery et al. 2022), the convention behind published MFU figures: matrix products
only, 2 operations a multiply-add, backward = 2 x forward, causal attention as if it looked both ways, no extra for
activation checkpointing.

Shape letters: T tokens, S memory tokens, C model dim, V vocabulary.
"""

import torch
from torch import nn

from lit_tfm.models.config import TransformerConfig


def parameters(model: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_parameters(architecture: type[nn.Module], head: bool = True, **options) -> int:
    """Parameters of `architecture(**options)` without making the weights; `head` adds an untied language-model head."""
    with torch.device("meta"):
        model = architecture(**options)
    config = model.config
    untied = config.vocab_size * config.d_model if head and not config.tie_embeddings else 0
    return parameters(model) + untied


def flops_per_token(
    config: TransformerConfig,
    length: int,
    kind: str = "decoder",
    *,
    target_length: int | None = None,
    head_share: float = 1.0,
) -> float:
    """Training operations per token, forward and backward, with a language-model head.

    `kind`: "encoder", "decoder", or "encoder_decoder" (a model's `kind`); of the last, a sample has `length` +
    `target_length` (None: `length`) tokens, and the cost is shared by all of them. `head_share`: for how many of the
    (decoder's) tokens logits are computed: the masking rate of masked LM, 0 without such a head.
    """
    head = 2 * config.d_model * config.vocab_size * head_share
    if kind != "encoder_decoder":
        entry = _neighbours(config, both_sides=kind == "encoder")
        return 3.0 * (entry + config.n_layers * _layer(config, length) + head)
    target = target_length or length
    encoder = length * (_neighbours(config, both_sides=True) + config.n_layers * _layer(config, length))
    decoder = config.n_decoder_layers * (target * _layer(config, target) + _cross(config, target, length))
    decoder += target * _neighbours(config, both_sides=False)
    return 3.0 * (encoder + decoder + target * head) / (length + target)


def _neighbours(config: TransformerConfig, both_sides: bool) -> float:
    """Forward operations per token of what mixes the embeddings of neighbours."""
    return 2 * config.d_model**2 * config.neighbours * (2 if both_sides else 1)


def _layer(config: TransformerConfig, length: int) -> float:
    """Forward operations per token of self-attention and feed-forward."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    projections = config.d_model * (2 * queries + 2 * keys)
    feed_forward = config.d_model * config.d_ff * (3 if config.gated else 2)
    attention = 2 * queries * length  # logits, and weights times values
    return 2 * (projections + feed_forward + attention)


def _cross(config: TransformerConfig, tokens: int, memory: int) -> float:
    """Forward operations of one layer's cross-attention for a whole sample."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    projections = config.d_model * (2 * queries * tokens + 2 * keys * memory)
    return 2 * (projections + 2 * queries * tokens * memory)
