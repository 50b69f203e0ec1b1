"""How a model knows the order of its tokens: three doors, each a no-op unless the scheme uses it.

- `embed(x, start)`               adds to the embedded tokens           learned, sinusoidal
- `rotate(heads, start)`          turns queries and keys                rotary
- `bias(queries, keys, start)`    is added to the attention logits      ALiBi, T5 buckets

`start` is the position of the first token: more than 0 when decoding with a cache. `embed` also takes a tensor (B,),
one start a row, negative by the padding on the left: a left-padded row then has the positions it has without padding.
Tables are buffers that are not saved: checkpoints hold weights only.

Shape letters: B batch, T queries, S keys, H heads, D head dim, C model dim.
"""

import math

import torch
from torch import Tensor, nn

from lit_tfm.errors import UserError


class Positions(nn.Module):
    """No positions at all, and what the schemes share."""

    absolute = False  # the output of a token changes when the whole text is shifted

    def __init__(self, max_length: int | None = None) -> None:
        super().__init__()
        self.max_length = max_length

    def check(self, length: int) -> None:
        """Raises UserError when `length` tokens do not fit the positions this model has."""
        if self.max_length is not None and length > self.max_length:
            raise UserError(
                f"a sequence of {length} tokens; the model has positions for {self.max_length}; "
                f"shorten it, or train with model.max_length={length}"
            )

    def embed(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        return x

    def rotate(self, heads: Tensor, start: int = 0) -> Tensor:
        return heads

    def bias(self, queries: int, keys: int, start: int = 0) -> Tensor | None:
        return None

    def fill(self) -> None:
        """Write the tables that are computed, not learned; again after `to_empty()` on a model born on meta."""


def _rows(table: Tensor, start: int | Tensor, length: int) -> Tensor:
    """Rows start .. start + length of a table (max_length, C): (T, C), or (B, T, C) when `start` is (B,)."""
    if isinstance(start, int):
        return table[start : start + length]
    index = start[:, None] + torch.arange(length, device=start.device)  # (B, T)
    return table[index.clamp_min(0)]  # padding on the left would stand before position 0


class Learned(Positions):
    absolute = True

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__(max_length)
        self.weight = nn.Parameter(torch.empty(max_length, d_model))

    def embed(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        return x + _rows(self.weight, start, x.size(1))


class Sinusoidal(Positions):
    """Vaswani et al. 2017, section 3.5: sine in the even channels, cosine in the odd ones."""

    absolute = True

    def __init__(self, max_length: int, d_model: int, base: float = 10_000.0) -> None:
        super().__init__(max_length)
        self.base = base
        self.register_buffer("table", torch.empty(max_length, d_model), persistent=False)
        self.fill()

    def fill(self) -> None:
        length, channels = self.table.shape
        angle = _angles(length, channels, self.base, self.table.device)  # (max_length, C / 2)
        self.table.copy_(torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1))

    def embed(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        return x + _rows(self.table, start, x.size(1)).to(x.dtype)


class Rotary(Positions):
    """Su et al. 2021. Channel i turns with channel i + D/2 (as in Llama and GPT-NeoX, not interleaved)."""

    def __init__(self, max_length: int, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__(max_length)
        self.base = base
        self.register_buffer("cos", torch.empty(max_length, 1, head_dim // 2), persistent=False)
        self.register_buffer("sin", torch.empty(max_length, 1, head_dim // 2), persistent=False)
        self.fill()

    def fill(self) -> None:
        length, _, half = self.cos.shape
        angle = _angles(length, 2 * half, self.base, self.cos.device)[:, None]  # (max_length, 1, D / 2)
        self.cos.copy_(angle.cos())
        self.sin.copy_(angle.sin())

    def rotate(self, heads: Tensor, start: int = 0) -> Tensor:
        """(B, T, heads, D) -> the same, turned by the position; queries and keys may go through together."""
        length = heads.size(1)
        cos, sin = self.cos[start : start + length], self.sin[start : start + length]  # (T, 1, D / 2)
        one, two = heads.chunk(2, dim=-1)
        turned = (torch.addcmul(one * cos, two, sin, value=-1), torch.addcmul(two * cos, one, sin))
        return torch.cat(turned, dim=-1)


class Alibi(Positions):
    """Press et al. 2022: the logit falls linearly with the distance, each head with a slope of its own."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.empty(n_heads), persistent=False)
        self.fill()

    def fill(self) -> None:
        self.slopes.copy_(torch.tensor(alibi_slopes(len(self.slopes))))

    def bias(self, queries: int, keys: int, start: int = 0) -> Tensor:
        distance = _offsets(queries, keys, start, self.slopes.device).abs()  # (T, S)
        return -self.slopes[:, None, None] * distance  # (H, T, S)


class T5Buckets(Positions):
    """Raffel et al. 2020: one learned number per head and bucket of distance, shared by all layers of the stack.

    Half of the buckets hold one distance each, the rest grow logarithmically up to `max_distance`. Looking both ways
    splits the buckets between before and after.
    """

    def __init__(self, n_heads: int, *, causal: bool, buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.causal, self.buckets, self.max_distance = causal, buckets, max_distance
        self.weight = nn.Parameter(torch.empty(buckets, n_heads))

    def bucket(self, offset: Tensor) -> Tensor:
        """Key position minus query position -> bucket."""
        buckets = self.buckets if self.causal else self.buckets // 2
        before = torch.zeros_like(offset) if self.causal else (offset > 0) * buckets
        distance = (-offset).clamp_min(0) if self.causal else offset.abs()
        exact = buckets // 2
        growth = (buckets - exact) / math.log(self.max_distance / exact)
        far = exact + (torch.log(distance.clamp_min(1) / exact) * growth).long()
        return before + torch.where(distance < exact, distance, far.clamp_max(buckets - 1))

    def bias(self, queries: int, keys: int, start: int = 0) -> Tensor:
        buckets = self.bucket(_offsets(queries, keys, start, self.weight.device))  # (T, S)
        return self.weight[buckets].permute(2, 0, 1)  # (T, S, H) -> (H, T, S)


def alibi_slopes(n_heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ...; n no power of two: the rest takes every second slope of the next power (their code)."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (n_heads - power), 2)]


def _angles(length: int, channels: int, base: float, device: torch.device) -> Tensor:
    """Position times frequency: (length, channels / 2), frequencies from 1 down to about 1 / base.

    In float64, on the CPU: angles of thousands of radians keep few digits in float32, and devices differ in theirs.
    """
    if device.type == "meta":
        return torch.empty(length, channels // 2, device=device)
    frequency = base ** (-torch.arange(0, channels, 2, dtype=torch.float64, device="cpu") / channels)
    position = torch.arange(length, dtype=torch.float64, device="cpu")
    return position[:, None] * frequency


def _offsets(queries: int, keys: int, start: int, device: torch.device) -> Tensor:
    """Key position minus query position, (T, S)."""
    position = torch.arange(start, start + queries, device=device)
    return torch.arange(keys, device=device) - position[:, None]


SCHEMES = ("none", "sinusoidal", "learned", "rotary", "alibi", "t5")


def positions(
    scheme: str,
    *,
    max_length: int,
    d_model: int,
    n_heads: int,
    head_dim: int,
    causal: bool,
    rotary_base: float = 10_000.0,
    buckets: int = 32,
    max_distance: int = 128,
) -> Positions:
    """The module of a scheme, one of SCHEMES."""
    builders = {
        "none": lambda: Positions(),
        "sinusoidal": lambda: Sinusoidal(max_length, d_model),
        "learned": lambda: Learned(max_length, d_model),
        "rotary": lambda: Rotary(max_length, head_dim, rotary_base),
        "alibi": lambda: Alibi(n_heads),
        "t5": lambda: T5Buckets(n_heads, causal=causal, buckets=buckets, max_distance=max_distance),
    }
    return builders[scheme]()
