"""Dropout (Srivastava et al. 2014), with random numbers that a CPU does not wait for.

torch draws 64 random bits for every element of a CPU tensor, one element after the other. Sixteen bits decide as well,
and four decisions come of one draw: 2.6 to 3.7 times faster where tensors stay in a cache, 2 % of a whole training step
of BERT's shape (one thread, 2026-11-28). Elsewhere, and where torch.compile fuses it, it is torch's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16  # of a decision: `p` is rounded to a 65,536th, and the scale is that of the rounded one


def dropout(x: Tensor, p: float) -> Tensor:
    """Any shape -> the same: each element is 0 with probability `p`, and the others grow by 1 / (1 - p)."""
    dropped = round(p * LEVELS)
    if not 0 < dropped < LEVELS or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all of the 64 bits
    decisions = draws.view(torch.int16)[: x.numel()].view(x.shape)  # from -LEVELS / 2 on
    kept = (decisions >= dropped - LEVELS // 2).to(x.dtype)
    return x * kept.mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Dropout):
    """`dropout` in training, nothing elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
