"""Sums over targets: what makes a metric the same for every batch size, accumulation and number of ranks."""

import torch
import torch.distributed as dist
from torch import Tensor


class Sums:
    """Named numerators and denominators in float64, added over batches and over ranks.

    A mean of batch means is wrong as soon as batches differ in their number of targets; here only sums are kept and
    the division comes last.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> (2,) numerator and denominator

    def add(self, name: str, numerator: Tensor | float, denominator: Tensor | float) -> None:
        device = numerator.device if isinstance(numerator, Tensor) else None
        pair = torch.stack(
            [torch.as_tensor(x, dtype=torch.float64, device=device).detach() for x in (numerator, denominator)]
        )
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def means(self) -> dict[str, float]:
        """Numerator over denominator of every name, over all ranks; NaN where nothing was counted.

        Collective: with several ranks, all must call it, with the same names.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        table = torch.stack([self._sums[name] for name in names])  # (names, 2)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(table)
        return {
            name: (top / bottom if bottom else float("nan"))
            for name, (top, bottom) in zip(names, table.tolist(), strict=True)
        }

    def reset(self) -> None:
        self._sums.clear()
