"""The decoder: a token sees itself and those before it (GPT and its kin).

Shape letters: B batch, T tokens, S tokens so far, H heads, C model dim.
"""

from torch import Tensor, nn

from lit_tfm.models.config import TransformerConfig
from lit_tfm.models.stack import Stack, start_weights
from lit_tfm.nn.cache import KVCache


class Decoder(Stack):
    """Token ids -> causal hidden states. Options: those of `TransformerConfig`."""

    Config = TransformerConfig
    kind = "decoder"

    def __init__(self, **options) -> None:
        config = TransformerConfig(**options)
        config.check()
        super().__init__(config, config.n_layers, causal=True)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill all weights and tables; call it after `to_empty()` on a model born on the meta device."""
        start_weights(self, self.config)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """input_ids (B, T) -> (B, T, C), normed: a head applies directly.

        `attention_mask` (B, T) bool, True: no padding. Padding on the right needs none (nothing looks ahead), and
        without one attention takes its fastest path. `document_ids` (B, T): tokens see their own document only.
        `cache`: the tokens follow those it holds and join them; prompts of several lengths are padded on the LEFT.
        With `return_attention` also the weights (B, H, T, S) of each layer. Raises UserError beyond `max_length`.
        """
        x = self.embedding(input_ids)
        x, weights = self.run(x, input_ids, attention_mask, document_ids, cache=cache, explicit=return_attention)
        return (x, weights.own) if return_attention else x

    def forward(self, *args, **kwargs) -> Tensor | tuple[Tensor, list[Tensor]]:
        """`hidden`, for tools that call a module."""
        return self.hidden(*args, **kwargs)
