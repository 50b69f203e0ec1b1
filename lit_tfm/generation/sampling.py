"""From logits to the next token: greedy, or drawn with temperature, top-k, top-p and min-p, in this order.

Letters: B rows, V vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_tfm.data.noise import uniform
from lit_tfm.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token. `top_k`: of the k likeliest only (0: all). `top_p`: of the fewest
    whose probabilities reach p (Holtzman et al. 2020, nucleus sampling). `min_p`: of those at least p times as probable
    as the likeliest (Nguyen et al. 2024, arXiv 2407.01082).

    Draws are a pure function of (seed, row, position): no global generator is touched, and a row's text depends neither
    on the rows beside it nor on the device.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if (
            not 0 <= self.temperature < math.inf
            or self.top_k < 0
            or not 0 < self.top_p <= 1
            or not 0 <= self.min_p <= 1
        ):
            raise UserError(
                f"temperature={self.temperature} top_k={self.top_k} top_p={self.top_p} min_p={self.min_p}; allowed are "
                "temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1; "
                "type e.g. temperature=0.8 top_k=50 top_p=0.95"
            )

    def choose(self, logits: Tensor, position: int, rows: np.ndarray | None = None) -> Tensor:
        """logits (B, V) of the token at `position` -> ids (B,). `rows` (B,) number the draws; None: 0, 1, 2 ..."""
        if self.temperature == 0:
            return logits.argmax(-1)
        device = logits.device
        if torch.are_deterministic_algorithms_enabled():
            logits = logits.cpu()  # CUDA has no deterministic cumulative sum
        likely = self.distribution(logits)  # (B, V)
        draw = uniform(self.seed, position, np.arange(len(logits)) if rows is None else rows, stream=0, n=1)
        draw = torch.from_numpy(draw).to(logits.device, torch.float32)
        ladder = likely.cumsum(-1)
        # Below the last step whatever was rounded: the draw is scaled by the sum, and float32 may round it up to 1.
        draw = draw.clamp(max=1 - 2**-24) * ladder[:, -1:]  # (B, 1)
        return (ladder <= draw).sum(-1).to(device)

    def distribution(self, logits: Tensor) -> Tensor:
        """The probabilities (B, V) that tokens are drawn from; 0 for those cut off."""
        logits = logits.float() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        likely = logits.softmax(-1)
        if self.top_p < 1:
            ranked, order = likely.sort(descending=True, stable=True)
            enough = ranked.cumsum(-1) - ranked >= self.top_p  # those before it reach p already
            cut = torch.zeros_like(enough).scatter(1, order, enough)
            likely = likely.masked_fill(cut, 0.0)
        if self.min_p > 0:
            likely = likely.masked_fill(likely < self.min_p * likely.amax(-1, keepdim=True), 0.0)
        if self.top_p < 1 or self.min_p > 0:
            likely = likely / likely.sum(-1, keepdim=True)
        return likely


GREEDY = Sampling(temperature=0.0)
