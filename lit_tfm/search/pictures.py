"""The pictures of a sweep, each as a plotly figure and as a PNG, or the reason why it can't be drawn.

Optuna draws most of them (optuna.visualization); the learning curves are drawn here, because Optuna knows only what was
reported at the rungs, and the runs know more. Imports no torch.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import optuna.visualization as interactive
import optuna.visualization.matplotlib as still
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as StillFigure
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import TrialState

from lit_tfm.reports.page import Figure, Heading, Section, label
from lit_tfm.search import contours
from lit_tfm.search.learning_curves import Curve, axes, limits, traces

# PED-ANOVA compares the best trials with all: with fewer than this many, the answer is mostly noise.
ENOUGH_TRIALS = 10
TOP_TRIALS = 5  # "it is preferable to include at least 5 trials above target_quantile", says Optuna's documentation
CONTOURED = 4  # parameters: every pair is a picture


@dataclass(frozen=True)
class Picture:
    """What to draw of one objective. `why_not` tells in words why it can't be; both drawings take no arguments."""

    name: str
    title: str
    why_not: str | None
    interactive: Callable[[], Any] = lambda: None
    still: Callable[[], Any] = lambda: None
    caption: str = ""
    height: int = 440
    inches: tuple[float, float] | None = None  # of the PNG


@dataclass(frozen=True)
class Objective:
    """One of the study's. `target` is None where there is only one: Optuna then knows itself."""

    name: str
    place: int
    only: bool
    maximize: bool

    @property
    def target(self) -> Callable | None:
        return None if self.only else lambda trial: trial.values[self.place]

    @property
    def cost(self) -> Callable | None:
        """The lower the better, as PED-ANOVA takes any target to be."""
        sign = -1.0 if self.maximize else 1.0
        return None if self.only else lambda trial: sign * trial.values[self.place]


def objectives(study: optuna.Study, names: list[str]) -> list[Objective]:
    several = len(study.directions) > 1
    return [
        Objective(name, place, not several, direction == StudyDirection.MAXIMIZE)
        for place, (name, direction) in enumerate(zip(names, study.directions, strict=True))
    ]


def sections(study: optuna.Study, names: list[str], curves: list[Curve], curve_metric: str) -> list[Section]:
    """All pictures for the page, under their headings."""
    parts: list[Section] = [Heading("Learning curves")]
    if curves:
        caption = (
            f"{curve_metric} of every trial. Blue: complete, the best thick; orange: pruned; red: failed. "
            "A click on the legend hides a kind; a double click leaves it alone."
        )
        layout = {
            "yaxis": {"title": {"text": label(curve_metric)}, "range": limits(curves)},
            "xaxis": {},
            "hovermode": "closest",
            "margin": {"t": 20},
        }
        parts.append(Figure({"data": traces(curves), "layout": layout}, caption, 480, axes(curves)))
    else:
        parts.append(f"No trial has measured {curve_metric}.")
    several = len(study.directions) > 1
    for objective in objectives(study, names):
        with quiet():
            found = of_objective(study, objective)
        for picture in found:
            parts.append(Heading(f"{picture.title}: {objective.name}" if several else picture.title))
            parts.append(_drawn(picture))
    if several:
        picture = pareto(study, names)
        parts[:0] = [Heading(picture.title), _drawn(picture)]
    return parts


def _drawn(picture: Picture) -> Section:
    if picture.why_not:
        return picture.why_not
    with quiet():
        return Figure(_untitled(picture.interactive()), picture.caption, picture.height)


def _untitled(figure: Any) -> Any:
    """The heading says it already; names of parameters are text, not plotly's markup."""
    figure.update_layout(title=None, margin={"t": 30})
    return figure


def of_objective(study: optuna.Study, objective: Objective) -> list[Picture]:
    """History, importances, parallel coordinates, slices and contours of one objective."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    names = list(dict.fromkeys(name for trial in complete for name in trial.params))
    varied = [name for name in names if len({str(t.params[name]) for t in complete if name in t.params}) > 1]
    none = None if complete else "No trial has been completed."
    common = {"target": objective.target, "target_name": objective.name}
    importance = _importances(study, objective, complete, varied)
    which = "first" if importance.why_not else "most important"
    chosen = contoured(study, objective, varied, importance.why_not is None)
    searched = None if names else "No parameter was searched."
    return [
        Picture(
            "history",
            "History",
            none,
            lambda: interactive.plot_optimization_history(study, **common),
            lambda: still.plot_optimization_history(study, **common),
            "Complete trials in the order of their numbers, and the best so far.",
        ),
        importance,
        Picture(
            "parallel_coordinates",
            "Parallel coordinates",
            none or searched,
            lambda: interactive.plot_parallel_coordinate(study, **common),
            lambda: still.plot_parallel_coordinate(study, **common),
            "Every line is a complete trial; the darker, the better.",
            480,
            (max(6.0, 1.8 * (1 + len(names))), 4.5),
        ),
        Picture(
            "slices",
            "Slices",
            none or searched,
            lambda: interactive.plot_slice(study, **common),
            lambda: still.plot_slice(study, **common),
            "Every point is a complete trial; later ones are darker.",
            400,
            (max(4.0, 2.9 * len(names)), 3.6),
        ),
        Picture(
            "contours",
            "Contours",
            none or (None if len(chosen) > 1 else "It takes two parameters of which each has taken several values."),
            lambda: interactive.plot_contour(study, params=chosen, **common),
            lambda: contours.draw(study, chosen, objective.target, objective.name),
            "Between the points the colour is interpolated."
            + (f" Of {len(varied)} parameters the {CONTOURED} {which}." if len(varied) > CONTOURED else ""),
            420 if len(chosen) == 2 else 760,
        ),
    ]


def _importances(study, objective: Objective, complete: list, varied: list[str]) -> Picture:
    title = "Importances of the parameters"
    if len(complete) < ENOUGH_TRIALS:
        few = f"{len(complete)} trial{'s were' if len(complete) != 1 else ' was'} completed"
        return Picture("importances", title, f"{few}; fewer than {ENOUGH_TRIALS} say too little of what matters.")
    if len(varied) < 2:
        return Picture("importances", title, "There is nothing to compare: fewer than two parameters have varied.")
    evaluator = PedAnovaImportanceEvaluator(target_quantile=top_share(len(complete)))
    common = {"evaluator": evaluator, "target": objective.cost, "target_name": objective.name}
    top = round(top_share(len(complete)) * len(complete))
    return Picture(
        "importances",
        title,
        None,
        lambda: interactive.plot_param_importances(study, **common),
        lambda: still.plot_param_importances(study, **common),
        f"PED-ANOVA (Watanabe et al. 2023): how much the values of the best {top} of {len(complete)} complete trials "
        "differ from those of all. A share of what was tried here, not a law.",
        max(240, 90 + 36 * len(varied)),
    )


def top_share(trials: int) -> float:
    """Which share of the trials counts as the best: a tenth, or what makes five, but at most half."""
    return min(0.5, max(0.1, TOP_TRIALS / trials))


def contoured(study, objective: Objective, varied: list[str], ranked: bool) -> list[str]:
    """The parameters whose pairs are drawn: the most important ones where importances can be told."""
    if not ranked or len(varied) <= CONTOURED:
        return varied[:CONTOURED]
    trials = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=top_share(trials))
    order = optuna.importance.get_param_importances(study, evaluator=evaluator, target=objective.cost)
    return [name for name in order if name in varied][:CONTOURED]


def pareto(study: optuna.Study, names: list[str]) -> Picture:
    title = "Pareto front"
    if len(names) > 3:
        return Picture("pareto_front", title, f"{len(names)} objectives can't be drawn; the table lists the front.")
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return Picture("pareto_front", title, "No trial has been completed.")
    return Picture(
        "pareto_front",
        title,
        None,
        lambda: interactive.plot_pareto_front(study, target_names=names),
        lambda: still.plot_pareto_front(study, target_names=names),
        "Trials that no other beats in every objective, among all complete ones.",
        480,
    )


# ---- PNGs ------------------------------------------------------------------------------------------------------


def write_stills(folder: Path, study: optuna.Study, names: list[str], curves: list[Curve], metric: str) -> list[Path]:
    """PNGs of all that can be drawn; those of an earlier report that can't be any more are removed."""
    folder.mkdir(exist_ok=True)
    written = [_still_curves(folder / "learning_curves.png", curves, metric)] if curves else []
    with quiet(), agg():
        for objective in objectives(study, names):
            suffix = "" if objective.only else f"_{objective.place + 1}"
            for picture in of_objective(study, objective):
                if not picture.why_not:
                    written.append(_save(picture.still(), folder / f"{picture.name}{suffix}.png", picture.inches))
        if len(names) > 1 and not (front := pareto(study, names)).why_not:
            written.append(_save(front.still(), folder / "pareto_front.png"))
    for old in set(folder.glob("*.png")) - set(written):
        old.unlink()
    return written


def _save(drawn: Any, path: Path, inches: tuple[float, float] | None = None) -> Path:
    """`drawn` is an Axes or an array of them."""
    figure = np.ravel(np.asarray(drawn, dtype=object))[0].get_figure()
    if inches:
        figure.set_size_inches(inches)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _still_curves(path: Path, curves: list[Curve], metric: str) -> Path:
    figure = StillFigure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    seen = set()
    for curve in curves:
        shown = None if curve.kind in seen else curve.kind
        seen.add(curve.kind)
        values = [point.value for point in curve.points]
        tokens = [point.tokens for point in curve.points]
        width = 2.4 if curve.kind == "best" else 1.0
        axis.plot(tokens, values, color=curve.colour, linewidth=width, marker=".", markersize=4, label=shown)
    low, high = limits(curves) or (None, None)
    axis.set_ylim(low, high)
    axis.set_xlabel("tokens")
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=110)
    return path


@contextlib.contextmanager
def agg() -> Iterator[None]:
    """Optuna draws with pyplot and sets a style: whoever called finds backend and style as they were."""
    before = matplotlib.get_backend(auto_select=False)
    with matplotlib.rc_context():
        pyplot.switch_backend("agg")
        yield
    if before is not None:
        pyplot.switch_backend(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna's remarks on few trials and on experimental functions are said on the page, in its own words."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
