"""A scaling law: loss against compute, fitted by L = floor + a * C^-b, with intervals that small numbers deserve.

The form is that of Hoffmann et al. 2022 (arXiv 2203.15556) in one variable; with `floor=False` it is the pure power law
of Kaplan et al. 2020 (arXiv 2001.08361). C counts FLOPs of training, in any unit: `a` has that unit's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from lit_tfm.errors import UserError
from lit_tfm.reports.reading import Run

DRAWS = 400  # of the bootstrap
GRID = 21  # values of an unknown that are tried at once
ZOOMS = 12  # times the grid is laid anew around the best, each a third as wide
STEEPEST = 2.0  # largest exponent looked for
FLOORS = (1e-3, 1e3)  # floor over a, in units of the largest compute; and 0


@dataclass(frozen=True)
class PowerLaw:
    """L(C) = floor + a * C^-b. `draws` (S, 3) are (a, b, floor) of refits to data as likely as what was measured."""

    a: float
    b: float
    floor: float
    draws: np.ndarray
    unit: float  # compute is divided by it inside

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        """Loss at compute (N,)."""
        return self.floor + self.a * np.asarray(compute, dtype=float) ** -self.b

    def interval(self, name: str, confidence: float = 0.95) -> tuple[float, float]:
        """Of `a`, `b` or `floor`."""
        column = {"a": 0, "b": 1, "floor": 2}[name]
        return self._between(self.draws[:, column], confidence)

    def band(self, compute: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper loss at compute (N,): of the curve, not of single runs, which scatter around it."""
        a, b, floor = (self.draws[:, i : i + 1] for i in range(3))
        return self._between(floor + a * np.asarray(compute, dtype=float)[None] ** -b, confidence)

    def _between(self, values: np.ndarray, confidence: float) -> tuple:
        tail = (1 - confidence) / 2
        return tuple(np.quantile(values, [tail, 1 - tail], axis=0))

    def __str__(self) -> str:
        names = ["b", "floor"] if self.draws[:, 2].any() else ["b"]
        told = [f"{name} = {getattr(self, name):.3g} [{low:.3g}, {high:.3g}]"
                for name in names for low, high in [self.interval(name)]]  # fmt: skip
        floor = f"{self.floor:.3g} + " if self.floor else ""
        return f"L = {floor}{self.a:.3g} * C^-{self.b:.3g};  95 % intervals: {', '.join(told)}"


def fit(compute: Sequence[float], loss: Sequence[float], floor: bool = True, seed: int = 0) -> PowerLaw:
    """Least squares in log loss (errors are shares of the loss), intervals by a parametric bootstrap.

    With a handful of points the size of the noise is itself uncertain: each draw of the bootstrap takes another one, as
    likely as the residuals allow, which makes intervals as wide as Student's. Raises UserError for fewer than 3 points
    (4 with a floor), for numbers that are no logarithm's, and where compute does not vary.
    """
    c, y = np.asarray(compute, dtype=float), np.log(_positive(loss, "loss"))
    unit = _positive(compute, "compute").max()
    unknowns = 3 if floor else 2
    if len(c) != len(y) or len(c) <= unknowns:
        raise UserError(
            f"a power law with {unknowns} unknowns needs more than {len(c)} runs; train runs of other sizes"
        )
    if c.min() == c.max():
        raise UserError(f"all {len(c)} runs used the same compute; a law needs runs of different sizes")
    x = c / unit
    scale, exponent, ratio = _solve(x, y[None], floor)
    expected = _curve(x, scale, exponent, ratio)  # (1, N)
    freedom = len(c) - unknowns
    spread = np.square(y - expected[0]).sum()
    random = np.random.default_rng(seed)
    sigma = np.sqrt(spread / random.chisquare(freedom, size=(DRAWS, 1)))
    again = _solve(x, expected + sigma * random.standard_normal((DRAWS, len(c))), floor)
    a, b, least = (column[:, 0] for column in _plain(scale, exponent, ratio, unit))
    return PowerLaw(a[0], b[0], least[0], np.hstack(_plain(*again, unit)), unit)


def _positive(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise UserError(f"{name} has values that are not above 0; leave out the runs that failed")
    return values


# Inside: log L = scale + log(x^-b + ratio), x in (0, 1]. `scale` is linear, so only b and ratio are searched.


def _curve(x: np.ndarray, scale: np.ndarray, b: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """(S, 1) each -> (S, N)."""
    return scale + np.log(x[None] ** -b + ratio)


def _plain(scale: np.ndarray, b: np.ndarray, ratio: np.ndarray, unit: float) -> tuple[np.ndarray, ...]:
    """-> a, b, floor (S, 1) in the units of the data."""
    return np.exp(scale) * unit**b, b, np.exp(scale) * ratio


def _solve(x: np.ndarray, y: np.ndarray, floor: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y (S, N) log losses -> scale, exponent, floor / a, (S, 1) each: grids that zoom in, for all S at once."""
    count = len(y)
    b, b_width = np.full((count, 1), STEEPEST / 2), STEEPEST / 2
    low, high = np.log(FLOORS)
    logr, r_width = np.full((count, 1), (low + high) / 2), (high - low) / 2
    steps = np.linspace(-1, 1, GRID)
    for _ in range(ZOOMS):
        bs = np.clip(b + b_width * steps, 0.0, STEEPEST)  # (S, G)
        ratios = np.exp(np.clip(logr + r_width * steps, low, high)) if floor else np.zeros((count, 1))  # (S, R)
        ratios = np.hstack([np.zeros((count, 1)), ratios]) if floor else ratios
        shape = np.log(x ** -bs[:, :, None, None] + ratios[:, None, :, None])  # (S, G, R, N)
        left = y[:, None, None] - shape
        squares = np.square(left - left.mean(-1, keepdims=True)).sum(-1).reshape(count, -1)
        best = squares.argmin(1)
        b = bs[np.arange(count), best // ratios.shape[1]][:, None]
        ratio = ratios[np.arange(count), best % ratios.shape[1]][:, None]
        logr = np.where(ratio > 0, np.log(np.maximum(ratio, FLOORS[0])), logr)
        b_width, r_width = b_width / 3, r_width / 3
    scale = (y - np.log(x[None] ** -b + ratio)).mean(1, keepdims=True)
    return scale, b, ratio


# ---- of runs ---------------------------------------------------------------------------------------------------


def points(runs: Sequence[Run], metric: str = "val/loss") -> tuple[np.ndarray, np.ndarray]:
    """Compute in FLOPs and the best value of `metric`, of the runs that say both; sorted by compute.

    Raises UserError where none does.
    """
    known = [(run.flops, run.best[metric]) for run in runs if run.flops and metric in run.best]
    if not known:
        raise UserError(f"none of {len(runs)} runs has {metric} and its FLOPs; name finished runs of language models")
    compute, loss = np.array(sorted(known)).T
    return compute, loss


def draw(law: PowerLaw, compute: np.ndarray, loss: np.ndarray, reach: float = 10.0) -> Figure:
    """Measured points, the law, and its band, which goes on to `reach` times the largest compute."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    line = np.geomspace(min(compute), max(compute) * reach, 200)
    low, high = law.band(line)
    floor = f"{law.floor:.3g} + " if law.floor else ""
    axes.fill_between(line, low, high, color="#3b7dd8", alpha=0.2, linewidth=0, label="95 % band of the law")
    axes.plot(line, law(line), color="#3b7dd8", label=f"{floor}{law.a:.3g} · C$^{{-{law.b:.3g}}}$")
    axes.plot(compute, loss, "o", color="black", label="runs")
    axes.axvline(max(compute), color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs of training", ylabel="loss")
    # Beyond the data the band may open widely: what was measured has to stay readable.
    axes.set_ylim(max(low.min(), 0.5 * min(loss)), 1.1 * max(max(loss), law(line).max()))
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(StrMethodFormatter("{x:.3g}"))  # not powers of ten: losses are of one size
    axes.grid(which="both", alpha=0.2)
    axes.legend()
    return figure
