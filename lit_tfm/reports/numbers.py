"""How numbers are shown: as many digits as they carry, costs with their unit."""

import math
from typing import Any


def metric(value: float, spread: float | None = None) -> str:
    """0.9045; with a spread as many decimals as its second digit: 0.9045 ± 0.0031."""
    if not math.isfinite(value):
        return str(value)
    if spread is not None and math.isfinite(spread) and spread > 0:
        decimals = min(8, max(0, 1 - math.floor(math.log10(spread))))
        return f"{value:,.{decimals}f} ± {spread:,.{decimals}f}"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:,.{max(0, 4 - len(str(int(abs(value)))) + (abs(value) < 1))}f}"


def si(value: float) -> str:
    """1442566 -> 1.44M."""
    if not math.isfinite(value):
        return str(value)
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}E"


def duration(seconds: float) -> str:
    """138.2 -> 138s, 500 -> 8.3m."""
    if not math.isfinite(seconds):
        return str(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 3 * size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.3g}s"


def setting(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def shown(key: str, value: Any, spread: float | None = None, is_setting: bool = False) -> str:
    """A cell's text, by the name of its column."""
    if value is None and not is_setting:
        return ""
    if is_setting or isinstance(value, (str, bool)):
        return setting(value)
    if key == "seconds":
        return duration(value)
    if key in ("tokens", "parameters", "flops", "flops_per_token", "tokens_per_second"):
        return si(value)
    return f"{value:,.0f}" if key == "steps" else metric(value, spread)
