"""Matrix products of float32 on a CPU by oneDNN, where that is the faster of the two libraries that torch carries.

torch gives these products to MKL, which leaves AVX-512 alone on AMD's processors: 80 to 100 GFLOP/s of a core that does
190 to 230 by oneDNN, and 110 to 118 where that is kept to AVX2 (2026-11-28). It is the same float32, in another order
of sums. Everything else goes torch's way: other processors and devices, other dtypes, autocast, torch.export and
torch.func, small products, whoever turns oneDNN off by `torch.backends.mkldnn.flags(enabled=False)`, and processes
under `ulimit -v`: where no memory is left for its machine code oneDNN does not say so, it crashes.

Shape letters: R rows, C and D the widths of either side, N matrices.
"""

import platform
import resource
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 1 << 21  # multiplications of a product: below, the call costs more than is won; and each shape is compiled once


def _on_amd() -> bool:
    info = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (info.read_text(errors="replace") if info.exists() else platform.processor())


# Other makers' MKL uses all of the processor. The operator is the one that torch.compile's own products go by.
FASTER = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise") and _on_amd()


def by_onednn(size: int, left: Tensor, right: Tensor) -> bool:
    """Whether a product of these two goes by oneDNN; `size` is the number of its multiplications."""
    return (
        FASTER
        and left.device.type == right.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        # Compiled code decides when it runs: a question to sizes compiles a block anew for each answer.
        and (torch.compiler.is_compiling() or (_only_torch() and _pays(size)))
    )


def _pays(size: int) -> bool:
    return (
        size >= LEAST
        and torch.backends.mkldnn.enabled
        and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    )


def _only_torch() -> bool:
    """Nothing looks on that knows torch's own operators only: counters of FLOPs, fake tensors, torch.func, a trace."""
    active = torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active()
    return not active and not torch.jit.is_tracing()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., C), weight (D, C), bias (D,) -> (..., D), as `torch.nn.functional.linear`; gradients of any order."""
    if not by_onednn(x.numel() * weight.size(0), x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """left (R, D), right (R, C) -> left^T right (D, C), what a weight's gradient is; without a gradient of its own.

    oneDNN wants its first factor in rows, so the narrower of the two is copied. Where that is `right` the result lies
    in memory as (C, D).
    """
    if not by_onednn(left.numel() * right.size(1), left, right):
        return left.mT @ right
    if left.size(1) > right.size(1):
        return _product(right.mT, left.mT).mT
    return _product(left.mT, right.mT)


def add_transposed_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (D, C) += left^T right; the fastest where `total` came from `transposed_zeros_like`."""
    if by_onednn(left.numel() * right.size(1), left, right):
        total.add_(transposed_product(left, right))
    else:
        total.addmm_(left.mT, right)


def transposed_zeros_like(weight: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Zeros (D, C), in memory as `transposed_product` of R rows leaves them: to add two of different layout is slow."""
    wide, narrow = weight.shape
    if wide > narrow and by_onednn(rows * weight.numel(), weight, weight):
        return weight.new_zeros(narrow, wide, dtype=dtype).mT
    return torch.zeros_like(weight, dtype=dtype)


def products(left: Tensor, right: Tensor) -> Tensor:
    """left (N, R, C), right (N, C, D) -> (N, R, D), each of the N by itself on a CPU; without a gradient of its own."""
    if not by_onednn(left[0].numel() * right.size(-1), left, right):
        return left @ right
    return torch.stack([_product(a, b.mT) for a, b in zip(left.unbind(), right.unbind(), strict=True)])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.compiler.is_compiling():
        return _opaque_product(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# Inductor would copy whatever is not contiguous before it calls the operator by its own name.
@torch.library.custom_op("lit_tfm::product", mutates_args=(), device_types="cpu")
def _opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not _pays(x.numel() * weight.size(0)):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        second = torch.is_grad_enabled()  # someone asked for a graph of the gradient
        if weight is not None:
            of_x = gradient @ weight if second else _product(gradient, weight.mT)
        if x is not None:
            rows, changes = x.flatten(0, -2), gradient.flatten(0, -2)
            of_weight = changes.mT @ rows if second else transposed_product(changes, rows)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.flatten(0, -2).sum(0)
        return of_x, of_weight, of_bias


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`; the same parameters under the same names.

    `weight_parts`, where a weight holds several matrices below one another (heads): the rows of each, for optimizers
    of whole matrices.
    """

    weight_parts: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
