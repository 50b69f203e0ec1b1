"""Cross entropy over a vocabulary without ever holding all logits.

N rows times V words are by far the largest tensor of a small model, and its softmax, its gradient and their copies pass
through memory several times. Here rows go through the head in chunks, and the gradient of a chunk is found while its
logits are still in the cache. `torch.nn.functional.linear_cross_entropy` does so as well, but knows neither a cap on
the logits nor two losses of one pass, and took 1.5 to 7 times as long on a CPU (benchmarks/RESULTS.md).

Shape letters: N rows, R rows of a chunk, C model dim, V vocabulary.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_tfm.nn.products import add_transposed_product, linear, transposed_zeros_like

IGNORED = -100  # the label of a row that is no target
CHUNK = 1 << 20  # logits at once: 4 MiB stay in a cache; fewer make matrix products too flat (benchmarks/RESULTS.md)
ACCELERATOR_CHUNK = 1 << 27  # as for a GPU: 64 rows are no work for it, and half a gigabyte it can spare
LEAST = 64  # rows at once: below, each chunk costs more for reading the weight than for its products


def vocabulary_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    smoothing: float = 0.0,
    chunk: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), labels (N,) -> (loss, objective), each () and a sum over the rows with a label.

    Only the objective has a gradient; it is the loss with `smoothing` of the labels (Szegedy et al. 2016), and the loss
    itself without. `softcap` as in `LMHead`. The gradient is that of autograd up to rounding, and goes no second order.
    `compiled`: torch.compile fuses what happens to a chunk's logits, which else is about ten passes.
    """
    chunk = chunk or (CHUNK if hidden.device.type == "cpu" else ACCELERATOR_CHUNK)
    rows = min(len(hidden), max(LEAST, chunk // len(weight)))
    of_chunk = _compiled() if compiled else _by_passes
    return _Chunked.apply(hidden, weight, bias, labels, softcap, smoothing, max(1, rows), of_chunk)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, softcap, smoothing, rows, of_chunk):
        wanted = ctx.needs_input_grad[:3]
        given = (hidden, weight, bias)
        # Over the chunks the sums run in float32: bfloat16 would lose what is small beside a sum.
        summed = torch.promote_types(weight.dtype, torch.float32)
        of_hidden, of_weight, of_bias = wanted
        grads = [
            torch.zeros_like(hidden) if of_hidden else None,
            transposed_zeros_like(weight, rows, summed) if of_weight else None,
            torch.zeros_like(bias, dtype=summed) if of_bias else None,
        ]
        loss, low = hidden.new_zeros(2, dtype=torch.float32), None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = linear(hidden[part], weight, bias)
            losses, change = of_chunk(logits, labels[part], softcap, smoothing)
            loss += losses
            if any(wanted):
                low = weight.to(logits.dtype) if low is None else low  # once, not for every chunk
                _add_gradients(grads, change, hidden[part], low, part)
        ctx.save_for_backward(*(g if g is None else g.to(x.dtype) for g, x in zip(grads, given, strict=True)))
        true, objective = loss[0].clone(), loss[1].clone()
        ctx.mark_non_differentiable(true)
        return true, objective

    @staticmethod
    @once_differentiable
    def backward(ctx, _, upstream):
        grads = ctx.saved_tensors
        # A factor of one needs no pass over the weight; only a CPU's is known without waiting.
        if upstream.device.type != "cpu" or upstream.item() != 1:
            grads = [grad if grad is None else grad * upstream.to(grad.dtype) for grad in grads]
        return *grads, None, None, None, None, None


def _by_passes(logits: Tensor, labels: Tensor, softcap: float | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """logits (R, V), labels (R,) -> the two sums (2,), and the objective's gradient with respect to the logits (R, V).

    Pass after pass, as few as there are and most of them in place.
    """
    slope, capped = None, logits.float()
    if softcap is not None:
        slope = (capped / softcap).tanh_()
        capped = slope * softcap
    counted = (labels != IGNORED)[:, None]  # (R, 1)
    at = labels.clamp(min=0)[:, None]
    likely = torch.log_softmax(capped, dim=1)
    loss = -(likely.gather(1, at) * counted).sum()
    objective, size = loss, logits.shape[1]
    if smoothing:
        objective = (1 - smoothing) * loss - smoothing / size * (likely.sum(1, keepdim=True) * counted).sum()
    change = likely.exp_()
    if smoothing:
        change -= smoothing / size
    change.scatter_add_(1, at, torch.full_like(at, smoothing - 1, dtype=change.dtype))
    change.mul_(counted)
    if slope is not None:
        change.addcmul_(change, slope.square_(), value=-1)  # times 1 - tanh^2
    return torch.stack([loss, objective]), change.to(logits.dtype)


def _by_elements(logits: Tensor, labels: Tensor, softcap: float | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """As `_by_passes`, said element by element: nothing in place and nothing scattered, which would part the passes."""
    capped = logits.float()
    if softcap is not None:
        capped = softcap * torch.tanh(capped / softcap)
    counted = (labels != IGNORED)[:, None]  # (R, 1)
    hit = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]  # (R, V); none where ignored
    likely = torch.log_softmax(capped, dim=1)
    loss = -torch.where(hit, likely, 0.0).sum()
    objective, size = loss, logits.shape[1]
    if smoothing:
        objective = (1 - smoothing) * loss - smoothing / size * torch.where(counted, likely, 0.0).sum()
    change = likely.exp() - smoothing / size - hit * (1 - smoothing)
    if softcap is not None:
        change = change * (1 - (capped / softcap).square())
    return torch.stack([loss, objective]), (change * counted).to(logits.dtype)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_by_elements)


def _add_gradients(grads: list, change: Tensor, hidden: Tensor, weight: Tensor, part: slice) -> None:
    """What a chunk adds to the gradients of hidden, weight and bias. `change` and `weight` have the logits' dtype."""
    of_hidden, of_weight, of_bias = grads
    if of_hidden is not None:
        of_hidden[part] = linear(change, weight.mT)
    if of_weight is not None:
        if of_weight.dtype == change.dtype == hidden.dtype:
            add_transposed_product(of_weight, change, hidden)
        else:
            of_weight.add_(change.mT @ hidden.to(change.dtype))
    if of_bias is not None:
        of_bias.add_(change.sum(0))
