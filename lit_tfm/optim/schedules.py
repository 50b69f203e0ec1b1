"""Learning-rate schedules: pure functions of progress.

Progress runs from 0 to 1 over the run, by steps or by time, whichever is further; the value scales every group's peak
learning rate. All times are fractions of the run. Give the progress at the MIDDLE of the step about to be
taken, (n + 1/2) / N: at progress 0 and 1 the factor may be 0, and the step would change nothing.
"""

import math

from lit_tfm.errors import UserError, nearest


def constant(progress: float, *, warmup: float = 0.05) -> float:
    """Warm-up, then the peak to the end."""
    return _ramp(progress, warmup)


def linear(progress: float, *, warmup: float = 0.05, final: float = 0.0) -> float:
    """Straight down after the warm-up. Linear to zero beats cosine to a tenth: Bergsma et al. 2025, "Straight to zero",
    https://arxiv.org/abs/2502.15938; it was also BERT's (Devlin et al. 2019)."""
    return _ramp(progress, warmup) * _between(final, 1 - _after(progress, warmup))


def cosine(progress: float, *, warmup: float = 0.05, final: float = 0.0) -> float:
    """Half a cosine after the warm-up: Loshchilov & Hutter 2017, "SGDR", https://arxiv.org/abs/1608.03983."""
    return _ramp(progress, warmup) * _between(final, 0.5 + 0.5 * math.cos(math.pi * _after(progress, warmup)))


def wsd(
    progress: float, *, warmup: float = 0.05, cooldown: float = 0.2, shape: str = "sqrt", final: float = 0.0
) -> float:
    """Warm-up, stable, decay: Hu et al. 2024, "MiniCPM", https://arxiv.org/abs/2404.06395.

    In the last `cooldown` of the run, shape "linear" goes straight down; "sqrt" is 1 - sqrt(x), steep first, the better
    one for short cool-downs: Haegele et al. 2024, https://arxiv.org/abs/2405.18392, section 3.
    """
    if warmup + cooldown > 1:
        raise UserError(f"schedule: warmup={warmup} and cooldown={cooldown} exceed the run; their sum may be 1 at most")
    if shape not in ("linear", "sqrt"):
        near = nearest(shape, ("linear", "sqrt"))
        raise UserError(f"schedule.shape={shape} is not known{near}; type schedule.shape=linear or schedule.shape=sqrt")
    x = _after(progress, 1 - cooldown)
    return _ramp(progress, warmup) * _between(final, 1 - (math.sqrt(x) if shape == "sqrt" else x))


def inverse_sqrt(
    progress: float, *, warmup: float = 0.05, timescale: float = 0.05, cooldown: float = 0.2, final: float = 0.0
) -> float:
    """1/sqrt(progress) after the warm-up, and a straight cool-down to `final` in the last `cooldown` of the run.

    With cooldown=0 and timescale <= warmup it is Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 5.3,
    and ends at sqrt(warmup) instead of `final`. The timescale apart from the warm-up, and the cool-down, are those of
    Zhai et al. 2022, "Scaling vision transformers", https://arxiv.org/abs/2106.04560, section 3.5.
    """
    if warmup + cooldown > 1:
        raise UserError(f"schedule: warmup={warmup} and cooldown={cooldown} exceed the run; their sum may be 1 at most")
    flat = max(warmup, timescale)  # until here the factor is 1
    decay = math.sqrt(flat / max(progress, flat)) if flat > 0 else 1.0
    left = 1 - _after(progress, 1 - cooldown) if cooldown > 0 else 1.0
    return _ramp(progress, warmup) * (final + (max(decay, final) - final) * left if cooldown > 0 else decay)


def _ramp(progress: float, warmup: float) -> float:
    """0 to 1 in a straight line over the warm-up."""
    return min(1.0, max(0.0, progress) / warmup) if warmup > 0 else 1.0


def _after(progress: float, start: float) -> float:
    """How much of what follows `start` is done, in [0, 1]."""
    return min(1.0, max(0.0, (progress - start) / (1 - start))) if start < 1 else 0.0


def _between(final: float, x: float) -> float:
    """From `final` (x = 0) to 1 (x = 1)."""
    return final + (1 - final) * x
