"""Adafactor: Shazeer & Stern 2018, "Adaptive learning rates with sublinear memory", https://arxiv.org/abs/1804.04235.

torch.optim.Adafactor (2.13) raises on sharded parameters (FSDP2) and reads two numbers a parameter back from the device
in every step. This one does neither and takes the same steps; a test holds the two equal.

Shapes: R rows, C columns of a parameter's last two dimensions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from lit_tfm.optim.groups import Named, decay_groups, number_by_model


def adafactor(
    named_parameters: Iterable[Named],
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    clip: float = 1.0,
    smallest: float = 1e-3,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Second moments kept as one row and one column a matrix, no momentum.

    `lr` is relative: a parameter moves by `lr` times its own root mean square (at least `smallest`), and by
    1/sqrt(step) times it at most. `clip` bounds the root mean square of an update before that.
    """
    named = list(named_parameters)
    defaults = {"beta2_decay": beta2_decay, "clip": clip, "smallest": smallest}
    return number_by_model(Adafactor(decay_groups(named, lr, weight_decay), defaults), named)


class Adafactor(Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)
        return loss

    def _step(self, p: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[p]
        state["step"] = step = state.get("step", 0) + 1
        fresh = step ** group["beta2_decay"]  # weight of the new square: 1 in the first step, so no bias to correct
        rate = min(group["lr"], step**-0.5) * _rms(p).clamp(min=group["smallest"])
        update = gradient * self._variance(state, gradient, fresh).clamp(min=_tiny(p) ** 2).rsqrt()
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(update * (rate / (_rms(update) / group["clip"]).clamp(min=1.0)))

    def _variance(self, state: dict, gradient: Tensor, fresh: float) -> Tensor:
        """Running mean of the squared gradient; for matrices the rank-one estimate of algorithm 4."""
        square = gradient.square()
        if gradient.ndim < 2:
            return _remember(state, "variance", square, fresh)
        rows = _remember(state, "rows", square.mean(-1, keepdim=True), fresh)  # (..., R, 1)
        columns = _remember(state, "columns", square.mean(-2, keepdim=True), fresh)  # (..., 1, C)
        return rows * (columns / _settle(rows.mean(-2, keepdim=True)).clamp(min=_tiny(gradient)))


def _remember(state: dict, name: str, value: Tensor, fresh: float) -> Tensor:
    value = _settle(value)
    if name not in state:
        state[name] = torch.zeros_like(value)
    return state[name].lerp_(value, fresh)


def _rms(x: Tensor) -> Tensor:
    return _settle(x.square().mean()).sqrt()


def _settle(x: Tensor) -> Tensor:
    """A mean over sharded rows is still one term a rank: add the terms up."""
    if not isinstance(x, DTensor):
        return x
    return x.redistribute(placements=[Replicate() if p.is_partial() else p for p in x.placements])


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps
