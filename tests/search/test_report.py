"""report.html and its PNGs: what is drawn, what says why it is not, and that no text of a trial's becomes markup."""

import json
import re
import socket
import warnings
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from lit_tfm.search import outcomes, pictures, report
from lit_tfm.search.learning_curves import Curve, limits

DISTRIBUTIONS = {
    "optimizer": CategoricalDistribution(["adamw", "muon", "<b>lion</b>"]),
    "model.d_model": IntDistribution(64, 256, step=64),
    "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "optimizer.momentum": FloatDistribution(0.8, 0.99),
}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Seen(HTMLParser):
    """Tags with their attributes, headings, and text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.headings, self.words, self._open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.words.append(data)
            if self._open and self._open[-1] in ("h1", "h2"):
                self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def figures(text: str) -> list[dict]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    return [json.loads(each) for each in found]


def sweep(folder: Path, states: str, keys=tuple(DISTRIBUTIONS), directions=("minimize",), conditional=False):
    """A study of these trials (C complete, P pruned, F failed, R running), with the folders the engine leaves."""
    study = optuna.create_study(study_name="small", directions=list(directions))
    metrics = ["val/loss", "parameters", "seconds", "tokens_per_second"][: len(directions)]
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({"metric": metrics, "direction": list(directions), "n_trials": len(states)})
    )
    (folder / "command.txt").write_text("python -m lit_tfm.sweep sweep=small\n")
    for number, state in enumerate(states):
        params = {
            "optimizer": ("adamw", "muon", "<b>lion</b>")[number % 3],
            "model.d_model": 64 + 64 * (number % 4),
            "optimizer.lr": 10 ** (-4 + 3 * ((number * 7) % 10) / 10),
            "optimizer.momentum": 0.8 + 0.01 * (number % 19),
        }
        chosen = {key: value for key, value in params.items() if key in keys}
        if conditional and chosen.get("optimizer") != "muon":
            chosen.pop("optimizer.momentum", None)
        name = {"C": "COMPLETE", "P": "PRUNED", "F": "FAIL", "R": "RUNNING"}[state]
        values = [5.0 + (number * 5 % 7) / 10, 1000.0 * (number + 1), 3.0, 9.0][: len(directions)]
        study.add_trial(
            create_trial(
                state=TrialState[name],
                values=values if state == "C" else None,
                params=chosen,
                distributions={key: DISTRIBUTIONS[key] for key in chosen},
                intermediate_values={100 * i: 9.0 - i for i in range(1, 2 if state == "P" else 4)}
                if len(directions) == 1 and state != "F"
                else {},
            )
        )
        run = outcomes.trial_folder(folder, number)
        run.mkdir(parents=True)
        reason = EVIL if state == "F" else None
        (run / "trial.json").write_text(json.dumps({"number": number, "reason": reason, "attempts": 1}))
        if state in "CP":
            rows = [
                f"{10 * i},{i}.5,{100 * i},val/loss,{9.0 - i + number / 100}"
                for i in range(1, 3 if state == "P" else 5)
            ]
            (run / "metrics.csv").write_text("\n".join(["step,seconds,tokens,name,value", *rows]) + "\n")
            (run / "summary.json").write_text(json.dumps({"tokens": 400, "steps": 40, "seconds": 4.5}))
    return study


@pytest.fixture
def page(tmp_path: Path):
    def write(states: str, **options) -> tuple[Seen, list[dict]]:
        study = sweep(tmp_path, states, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text = report.html(report.read(tmp_path, study))
        return Seen(text), figures(text)

    return write


def kinds(figure: dict) -> set[str]:
    return {trace["type"] for trace in figure["data"]}


def test_everything_is_drawn(tmp_path: Path) -> None:
    study = sweep(tmp_path, "CCPCFCCPCCCCRCCC")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = report.write(tmp_path, study).read_text(encoding="utf-8")
    drawn = ["learning_curves", "history", "importances", "parallel_coordinates", "slices", "contours"]
    assert {path.stem for path in (tmp_path / "report").iterdir()} == set(drawn)
    for name in drawn:
        with Image.open(tmp_path / "report" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, name  # not an empty page
    found = [kinds(figure) for figure in figures(text)]
    assert len(found) == 6
    assert found[0] == found[1] == {"scatter"}  # learning curves, history
    assert "bar" in found[2]
    assert "contour" in found[5]
    seen = Seen(text)
    assert "15 of 16 trials done: 12 complete, 2 pruned, 1 failed, 1 running" in seen.text
    assert "Best: val/loss 5.0000, in trial 0" in seen.text
    assert "best.yaml" in seen.text


def test_learning_curves_tell_the_kinds_apart(page) -> None:
    curves = page("CPFCR")[1][0]
    assert {trace["legendgroup"]: trace["line"]["color"] for trace in curves["data"]} == {
        "running": "#999999",
        "pruned": "#e69f00",
        "complete": "#56b4e9",
        "best": "#0072b2",
    }
    best = next(i for i, trace in enumerate(curves["data"]) if trace["legendgroup"] == "best")
    assert curves["axes"]["tokens"][best] == [100, 200, 300, 400]
    assert curves["data"][best]["y"] == [8.0, 7.0, 6.0, 5.0]
    pruned = next(i for i, trace in enumerate(curves["data"]) if trace["legendgroup"] == "pruned")
    assert curves["axes"]["tokens"][pruned] == [100, 200]


def test_it_needs_no_network(page, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a report asks for no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    seen, _ = page("CCC")
    for tag, attributes in seen.tags:
        for name in ("src", "href", "data", "action"):
            value = attributes.get(name) or ""
            assert not re.match(r"(https?:)?//", value), (tag, attributes)
    assert not [tag for tag, _ in seen.tags if tag in ("link", "iframe", "object", "embed")]


def test_nothing_a_trial_says_becomes_markup(tmp_path: Path) -> None:
    text = report.html(report.read(tmp_path, sweep(tmp_path, "CFCP")))
    seen = Seen(text)
    assert not [tag for tag, _ in seen.tags if tag in ("img", "b")]  # a reason, and a choice: <b>lion</b>
    assert "<b>lion</b>" in seen.text
    assert not [attributes for _, attributes in seen.tags if any(name.startswith("on") for name in attributes)]
    assert EVIL in seen.text  # as text
    assert "alert(1)</script>" not in text


def test_what_cannot_be_drawn_says_why(page) -> None:
    seen, drawn = page("CCC")
    assert "3 trials were completed; fewer than 10" in seen.text
    assert len(drawn) == 5


def test_one_trial(tmp_path: Path) -> None:
    seen = Seen(report.write(tmp_path, sweep(tmp_path, "C")).read_text())
    assert "1 trial was completed; fewer than 10" in seen.text
    assert "each has taken several values" in seen.text  # contours
    stills = {path.stem for path in (tmp_path / "report").iterdir()}
    assert stills == {"history", "slices", "parallel_coordinates", "learning_curves"}


def test_one_parameter(page) -> None:
    seen, drawn = page("CCCCCCCCCCCC", keys=("optimizer.lr",))
    assert "fewer than two parameters have varied" in seen.text
    assert "each has taken several values" in seen.text
    assert len(drawn) == 4


@pytest.mark.parametrize("states", ["", "F", "FF", "PP", "R", "PFR"])
def test_nothing_completed(tmp_path: Path, states: str) -> None:
    text = report.write(tmp_path, sweep(tmp_path, states)).read_text()
    seen, curves = Seen(text), bool(set(states) & set("PR"))
    assert "No trial has been completed" in seen.text
    assert ("No trial has failed" in seen.text) == ("F" not in states)
    assert len(figures(text)) == curves
    assert [path.stem for path in (tmp_path / "report").iterdir()] == ["learning_curves"] * curves


def test_conditional_parameters(page) -> None:
    """Trials without a parameter are drawn where the others have it."""
    _, drawn = page("C" * 14, conditional=True)
    assert len(drawn) == 6
    assert {"optimizer", "optimizer.momentum"} <= set(drawn[3]["layout"]["xaxis"]["ticktext"])


def test_several_objectives(tmp_path: Path) -> None:
    study = sweep(tmp_path, "CCCCCCCCCCPF", keys=("model.d_model", "optimizer.lr"), directions=("minimize", "maximize"))
    seen = Seen(report.write(tmp_path, study).read_text())
    assert "Pareto front" in seen.headings
    assert "History: val/loss" in seen.headings
    assert "History: parameters" in seen.headings
    stills = {path.stem for path in (tmp_path / "report").iterdir()}
    assert {"pareto_front", "history_1", "history_2", "importances_2", "contours_2"} <= stills
    assert "beaten by no other" in seen.text


def test_four_objectives_have_a_table_only(page) -> None:
    seen, drawn = page("CCC", keys=("optimizer.lr",), directions=("minimize",) * 4)
    assert "4 objectives can't be drawn" in seen.text
    assert drawn


def test_an_infinite_loss_does_no_harm(tmp_path: Path) -> None:
    study = sweep(tmp_path, "CCCCCCCCCCC")
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=float("inf"),
            params={"optimizer.lr": 0.1},
            distributions={"optimizer.lr": DISTRIBUTIONS["optimizer.lr"]},
            intermediate_values={100: float("nan"), 200: float("inf")},
        )
    )
    assert "Best: val/loss 5.0000" in Seen(report.html(report.read(tmp_path, study))).text


def test_an_old_report_is_replaced(tmp_path: Path) -> None:
    study = sweep(tmp_path, "C")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "importances.png").write_bytes(b"of another time")
    (tmp_path / "report" / "notes.txt").write_text("mine")
    report.write(tmp_path, study)
    assert not (tmp_path / "report" / "importances.png").exists()
    assert (tmp_path / "report" / "notes.txt").exists()


def test_whoever_calls_finds_matplotlib_as_it_was(tmp_path: Path) -> None:
    matplotlib.use("svg")
    grid = matplotlib.rcParams["axes.grid"]
    report.write(tmp_path, sweep(tmp_path, "C"))
    assert matplotlib.get_backend() == "svg"
    assert matplotlib.rcParams["axes.grid"] == grid
    assert not matplotlib.pyplot.get_fignums()


def test_the_best_are_enough_to_compare() -> None:
    assert [round(pictures.top_share(n) * n) for n in (10, 20, 50, 200)] == [5, 5, 5, 20]


def test_a_diverged_trial_does_not_squeeze_the_others() -> None:
    def curve(*values: float) -> Curve:
        return Curve(0, "complete", "", [outcomes.Point(i, 0.0, i, v) for i, v in enumerate(values)])

    usual = [curve(*[9.0 - i / 10 for i in range(40)])]
    assert limits(usual) is None
    low, high = limits([*usual, curve(1e6)])
    assert low < 5.1
    assert 9.0 <= high < 10
