"""Lion: Chen et al. 2023, "Symbolic discovery of optimization algorithms", https://arxiv.org/abs/2302.06675."""

from collections.abc import Iterable

import torch
from torch.optim import Optimizer

from lit_tfm.optim.groups import Named, decay_groups, keep_if, number_by_model


def lion(
    named_parameters: Iterable[Named],
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 1.0,
) -> Optimizer:
    """Half the state of AdamW. Every entry moves by `lr`, so `lr` is 3 to 10 times smaller than AdamW's, and
    `weight_decay` as much larger (section 5 of the paper)."""
    named = list(named_parameters)
    return number_by_model(Lion(decay_groups(named, lr, weight_decay), betas), named)


class Lion(Optimizer):
    """Algorithm 2 of the paper, all parameters of a group at once."""

    _step_supports_amp_scaling = True  # torch's word for: a step marked by `found_inf` is left out

    def __init__(self, groups: list[dict], betas: tuple[float, float]):
        super().__init__(groups, {"betas": tuple(betas)})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            gradients = [p.grad for p in parameters]
            momenta = [self.state[p]["momentum"] for p in parameters]
            lr, (now, long), bad = group["lr"], group["betas"], getattr(self, "found_inf", None)
            decay = lr * group["weight_decay"]
            if bad is not None:  # a gradient equal to the momentum leaves it as it is, bit for bit
                gradients, decay = keep_if(bad, momenta, gradients), decay * (1 - bad)
            directions = torch._foreach_lerp(momenta, gradients, 1 - now)
            torch._foreach_sign_(directions)
            if bad is not None:
                torch._foreach_mul_(directions, 1 - bad)
            torch._foreach_mul_(parameters, 1 - decay)
            torch._foreach_add_(parameters, directions, alpha=-lr)
            torch._foreach_lerp_(momenta, gradients, 1 - long)
        return loss
