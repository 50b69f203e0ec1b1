"""The encoder-decoder: a decoder that also looks at the encoder's output, the memory (Vaswani et al. 2017; T5).

Shape letters: B batch, T decoder tokens, S memory tokens, H heads, C model dim.
"""

from torch import Tensor, nn

from lit_tfm.models.config import TransformerConfig
from lit_tfm.models.stack import Stack, Weights, start_weights
from lit_tfm.nn.cache import KVCache
from lit_tfm.nn.masks import cross_mask


class EncoderDecoder(nn.Module):
    """Token ids on both sides -> hidden states of the decoder, one embedding for both. Options: `TransformerConfig`."""

    Config = TransformerConfig
    kind = "encoder_decoder"

    def __init__(self, **options) -> None:
        super().__init__()
        self.config = config = TransformerConfig(**options)
        config.check()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, config.n_layers, causal=False)
        self.decoder = Stack(config, config.n_decoder_layers, causal=True, cross=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill all weights and tables; call it after `to_empty()` on a model born on the meta device."""
        for part in (
            self.encoder,
            self.decoder,
            self.embedding,
        ):  # apart: a depth-scaled init counts each side's layers
            start_weights(part, self.config)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """input_ids (B, S) -> memory (B, S, C); masks as in `Encoder.hidden`."""
        x = self.embedding(input_ids)
        x, weights = self.encoder.run(x, input_ids, attention_mask, document_ids, explicit=return_attention)
        return (x, weights.own) if return_attention else x

    def decode(
        self,
        decoder_input_ids: Tensor,
        memory: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Weights]:
        """decoder_input_ids (B, T), memory (B, S, C) -> (B, T, C), normed.

        `attention_mask` and `document_ids` (B, S) are the memory's, the other two (B, T) the decoder's. A decoder token
        sees its own document on both sides; one whose document has no memory gets nothing from there.
        `cache` as in `Decoder.hidden`; keys and values of the memory are computed once into it. With `return_attention`
        also the weights, `own` (B, H, T, T) and `cross` (B, H, T, S) of each layer.
        """
        x, weights = self.decoder.run(
            self.embedding(decoder_input_ids),
            decoder_input_ids,
            decoder_attention_mask,
            decoder_document_ids,
            memory=memory,
            memory_mask=cross_mask(attention_mask, decoder_document_ids, document_ids),
            cache=cache,
            explicit=return_attention,
        )
        return (x, weights) if return_attention else x

    def hidden(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_document_ids: Tensor | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Weights]:
        """`encode`, then `decode`: (B, T, C)."""
        memory = self.encode(input_ids, attention_mask, document_ids)
        return self.decode(
            decoder_input_ids,
            memory,
            attention_mask,
            document_ids,
            decoder_attention_mask,
            decoder_document_ids,
            return_attention=return_attention,
        )

    def forward(self, *args, **kwargs) -> Tensor | tuple[Tensor, Weights]:
        """`hidden`, for tools that call a module."""
        return self.hidden(*args, **kwargs)
