"""Each embedded token takes up those next to it: what a character or a piece of a word means lies in its neighbours,
and attention needs hundreds of steps to find them.

A convolution over the embeddings, once, before the first block, by full matrices. Kin: the token shift of RWKV (Peng et
al. 2023), the convolutions of Primer (So et al. 2021), the canon layers of Allen-Zhu 2025, which stand in every block.

Shape letters: B batch, T tokens, S tokens so far, N offsets, C model dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_tfm.nn.products import linear


class Neighbours(nn.Module):
    """x_t + the sum over offsets d of W_d x_(t - d), (B, T, C) -> (B, T, C); the matrices start at zero.

    Offsets are 1 .. reach, and unless `causal` also -1 .. -reach. Padding and other documents are no neighbours.
    """

    def __init__(self, size: int, reach: int, *, causal: bool) -> None:
        super().__init__()
        self.reach = reach
        self.offsets = [*range(1, reach + 1), *([] if causal else range(-1, -reach - 1, -1))]
        self.weight = nn.Parameter(torch.zeros(len(self.offsets) * size, size))  # (N C, C)
        self.weight_parts = (size,) * len(self.offsets)  # matrices below one another in `weight`, for Muon

    def forward(
        self, x: Tensor, *, before: Tensor | None = None, seen: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """`before` (B, S - T, C): the embedded tokens in front of x that a cache holds. `seen` (B, S) bool: no padding.
        `documents` (B, T): ids, only without `before`.
        """
        tokens, reach = x.size(1), self.reach
        row = x if before is None else torch.cat((before[:, -reach:], x), dim=1)  # (B, up to reach + T, C)
        if seen is not None:
            row = row * seen[:, -row.size(1) :, None]
        first = row.size(1) - tokens  # where x begins in it
        parts = linear(row, self.weight).chunk(len(self.offsets), dim=-1)
        others = None if documents is None else F.pad(documents, (reach, reach), value=-1)
        for offset, part in zip(self.offsets, parts, strict=True):
            left, right = max(0, offset - first), max(0, -offset)
            part = F.pad(part, (0, 0, left, right))
            begin = first + left - offset
            part = part[:, begin : begin + tokens]
            if others is not None:
                same = others[:, reach - offset : reach - offset + tokens] == documents
                part = part * same[..., None]
            x = x + part
        return x

    def extra_repr(self) -> str:
        return f"{self.weight.size(1)}, offsets={self.offsets}"
