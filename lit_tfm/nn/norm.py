"""Normalisation over the last dimension, and the way a sublayer meets the residual stream.

Shape letters: C model dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_tfm.nn.dropout import Dropout


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """(..., C) -> the same: x / sqrt(mean(x^2) + eps), times `weight` (C,).

    On a CPU torch makes it of ten operations and their gradients; float32 goes a way of fewer passes there, 1.4 to 6
    times as fast (one thread, 2026-11-28). Anything else has a fused kernel, or is made one by torch.compile.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class _RMSNorm(torch.autograd.Function):
    """With s = 1 / sqrt(mean(x^2) + eps) and h = g * weight:  dx = s * h - x * s^3 * mean(h * x)."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.size(-1)).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        normed = x * scale
        return normed if weight is None else normed.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, scale = ctx.saved_tensors
        product = gradient * x
        if weight is None:
            of_weight, sums = None, product.sum(-1, keepdim=True)
        else:
            of_weight = scale.flatten() @ product.reshape(-1, x.size(-1))
            sums = (product @ weight).unsqueeze(-1)
            gradient = gradient * weight
        coefficient = sums.mul_(scale.pow(3)).div_(-x.size(-1))
        of_x = torch.mul(x, coefficient, out=product).addcmul_(gradient, scale)
        return of_x, of_weight, None


class Norm(nn.Module):
    """RMS norm (Zhang and Sennrich 2019) or layer norm (Ba et al. 2016) of (..., C), with or without a learned gain.

    `bias` adds a learned shift: only layer norm has one, and only beside a gain.
    """

    def __init__(self, size: int, kind: str = "rms", *, weight: bool = False, bias: bool = False, eps: float = 1e-6):
        super().__init__()
        self.shape, self.kind, self.eps = (size,), kind, eps
        self.weight = nn.Parameter(torch.ones(size)) if weight else None
        self.bias = nn.Parameter(torch.zeros(size)) if weight and bias and kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        # Queries and keys come in bf16 under autocast: a float32 gain would lose the fused kernel.
        weight = self.weight if self.weight is None else self.weight.to(x.dtype)
        return rms_norm(x, weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.kind}, weight={self.weight is not None}, bias={self.bias is not None}"


class Residual(nn.Module):
    """The road round one sublayer: `leave(x, sublayer(enter(x)))`.

    - pre:    x + f(norm(x))         Xiong et al. 2020: trains without a long warm-up
    - post:   norm(x + f(x))         Vaswani et al. 2017
    - rezero: x + gain * f(x)        Bachlechner et al. 2020: one number a sublayer, started at 0, no norm inside

    The gain has shape (1,), not (): FSDP2 refuses parameters without dimensions.
    """

    def __init__(self, norm: Norm, position: str = "pre", *, dropout: float = 0.0):
        super().__init__()
        self.position = position
        self.norm = nn.Identity() if position == "rezero" else norm
        self.gain = nn.Parameter(torch.zeros(1)) if position == "rezero" else None
        self.dropout = Dropout(dropout)

    def enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.position == "pre" else x

    def leave(self, x: Tensor, change: Tensor) -> Tensor:
        change = self.dropout(change)
        if self.gain is not None:
            return x + self.gain * change
        return self.norm(x + change) if self.position == "post" else x + change
