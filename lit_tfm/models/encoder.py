"""The encoder: every token sees every other (BERT and its kin).

Shape letters: B batch, T tokens, H heads, C model dim.
"""

from torch import Tensor, nn

from lit_tfm.models.config import TransformerConfig
from lit_tfm.models.stack import Stack, start_weights


class Encoder(Stack):
    """Token ids -> hidden states in both directions. Options: those of `TransformerConfig`."""

    Config = TransformerConfig
    kind = "encoder"

    def __init__(self, **options) -> None:
        config = TransformerConfig(**options)
        config.check()
        super().__init__(config, config.n_layers, causal=False)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.segments = nn.Embedding(config.n_segments, config.d_model) if config.n_segments else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill all weights and tables; call it after `to_empty()` on a model born on the meta device."""
        start_weights(self, self.config)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """input_ids (B, T) -> (B, T, C), normed: a head applies directly.

        `attention_mask` (B, T) bool, True: no padding. `document_ids` (B, T): tokens see their own document only.
        `segment_ids` (B, T): which of two texts, None: all 0; only with `n_segments`.
        With `return_attention` also the weights (B, H, T, T) of each layer. Raises UserError beyond `max_length`.
        """
        x = self.embedding(input_ids)
        if self.segments is not None:
            x = x + self.segments(input_ids.new_zeros(1) if segment_ids is None else segment_ids)
        x, weights = self.run(x, input_ids, attention_mask, document_ids, explicit=return_attention)
        return (x, weights.own) if return_attention else x

    def forward(self, *args, **kwargs) -> Tensor | tuple[Tensor, list[Tensor]]:
        """`hidden`, for tools that call a module."""
        return self.hidden(*args, **kwargs)
