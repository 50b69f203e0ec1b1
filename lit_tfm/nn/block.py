"""One layer: self-attention, cross-attention where there is a memory, feed-forward, each on its residual road.

Shape letters: B batch, T tokens, S memory tokens, H heads, K key-value heads, D head dim, C model dim.
"""

from torch import Tensor, nn

from lit_tfm.nn.attention import Attention
from lit_tfm.nn.cache import LayerCache
from lit_tfm.nn.feed_forward import FeedForward
from lit_tfm.nn.masks import Mask
from lit_tfm.nn.norm import Norm, Residual
from lit_tfm.nn.positions import Positions


class Block(nn.Module):
    """(B, T, C) -> (B, T, C). Arguments are those of `Attention`, `FeedForward`, `Norm` and `Residual`."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        cross: bool = False,
        norm: str = "rms",
        norm_weight: bool = False,
        norm_position: str = "pre",
        norm_eps: float = 1e-6,
        activation: str = "relu2",
        gated: bool = False,
        qk_norm: bool = False,
        attention_scale: float | None = None,
        value_embeddings: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()

        def attention(cross: bool) -> Attention:
            return Attention(
                d_model,
                n_heads,
                n_kv_heads=n_kv_heads,
                head_dim=head_dim,
                cross=cross,
                bias=bias,
                dropout=dropout,
                qk_norm=qk_norm,
                qk_gain=norm_weight,
                norm_eps=norm_eps,
                scale=attention_scale,
                value_embeddings=value_embeddings,
            )

        def residual() -> Residual:
            return Residual(
                Norm(d_model, norm, weight=norm_weight, bias=bias, eps=norm_eps), norm_position, dropout=dropout
            )

        self.attention, self.attention_residual = attention(cross=False), residual()
        if cross:
            self.cross_attention, self.cross_residual = attention(cross=True), residual()
        else:
            self.cross_attention = None
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, gated=gated, bias=bias)
        self.feed_forward_residual = residual()

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Mask,
        memory_mask: Mask | None = None,
        positions: Positions | None = None,
        values: Tensor | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
        explicit: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The new x, and when `explicit` the weights of self- (B, H, T, T) and cross-attention (B, H, T, S)."""
        road, cross_weights = self.attention_residual, None
        change, weights = self.attention(
            road.enter(x), mask=mask, positions=positions, values=values, cache=cache, start=start, explicit=explicit
        )
        x = road.leave(x, change)
        if self.cross_attention is not None:
            road = self.cross_residual
            change, cross_weights = self.cross_attention(
                road.enter(x), memory, mask=memory_mask, cache=cache, explicit=explicit
            )
            x = road.leave(x, change)
        road = self.feed_forward_residual
        return road.leave(x, self.feed_forward(road.enter(x))), weights, cross_weights
