"""AdamW: Loshchilov & Hutter 2019, "Decoupled weight decay regularization", https://arxiv.org/abs/1711.05101."""

from collections.abc import Iterable

from torch.optim import AdamW, Optimizer

from lit_tfm.optim.groups import Named, decay_groups, number_by_model


def adamw(
    named_parameters: Iterable[Named],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    fused: bool = True,
) -> Optimizer:
    """torch's AdamW, one fused kernel for all parameters of a group; `fused=False` for devices that have none.

    Lightning 2.6.6 refuses `gradient_clip_val` with a fused optimizer: clip in `configure_gradient_clipping`.
    """
    named = list(named_parameters)
    groups = decay_groups(named, lr, weight_decay)
    return number_by_model(AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=fused), named)
