"""From hidden states to logits.

Shape letters: C model dim, V vocabulary.
"""

import torch
from torch import Tensor, nn

from lit_tfm.nn.dropout import Dropout
from lit_tfm.nn.products import Linear, linear
from lit_tfm.nn.vocabulary_loss import vocabulary_loss


class LMHead(nn.Module):
    """(..., C) -> logits (..., V) in float32, over a weight of its own or the embedding's (`tied`).

    `softcap`: logits become cap * tanh(logits / cap) (Bello et al. 2016; Gemma 2). `init_std` None: 1 / sqrt(C).
    `compiled`: what the loss of training does to logits goes through torch.compile.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        tied: nn.Embedding | None = None,
        softcap: float | None = None,
        zero_init: bool = False,
        bias: bool = False,
        init_std: float | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        # The embedding stands in a tuple, which nn.Module does not look into: its weight keeps one owner and one name,
        # so that checkpoints, safetensors, DDP and FSDP see one parameter.
        self._tied = None if tied is None else (tied,)
        self.softcap, self.compiled = softcap, compiled
        self.matrix = None if tied is not None else nn.Parameter(torch.empty(vocab_size, d_model))
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None
        if self.matrix is not None:
            std = 0.0 if zero_init else init_std or d_model**-0.5
            nn.init.normal_(self.matrix, std=std) if std else nn.init.zeros_(self.matrix)

    @property
    def weight(self) -> Tensor:
        """(V, C)."""
        return self.matrix if self._tied is None else self._tied[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.cap(linear(hidden, self.weight, self.bias).float())

    def losses(self, hidden: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """hidden (N, C), labels (N,) -> the summed loss and what is differentiated; see nn/vocabulary_loss.py."""
        options = {"softcap": self.softcap, "smoothing": smoothing, "compiled": self.compiled}
        return vocabulary_loss(hidden, self.weight, labels, self.bias, **options)

    def cap(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class ClassificationHead(nn.Module):
    """Pooled (B, C) -> logits (B, n_classes) in float32."""

    def __init__(self, d_model: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = Linear(d_model, n_classes)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.dropout(pooled)).float()
