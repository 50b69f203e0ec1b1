"""What is drawn: every point once on every axis, the front of the runs that nothing beats, names that can't do harm."""

from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.reports import figures
from lit_tfm.reports.columns import columns
from lit_tfm.reports.reading import read_run
from lit_tfm.reports.tables import compare


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 5)), st.integers(0, 5)), min_size=1, max_size=12),
    st.booleans(),
)
def test_the_front_is_what_nothing_beats_in_both(runs, larger) -> None:
    costs, qualities = zip(*runs, strict=True)
    found = figures.front(costs, qualities, larger)
    sign = -1 if larger else 1
    points = [None if cost is None else (cost, sign * quality) for cost, quality in runs]
    for i, point in enumerate(points):
        beaten = point is None or any(
            other is not None and other != point and other[0] <= point[0] and other[1] <= point[1] for other in points
        )
        alike = [j for j, other in enumerate(points) if other == point]
        assert (len(found.intersection(alike)) == 1) == (not beaten), (runs, i)


def test_curves_hold_every_point_on_every_axis(make, tmp_path) -> None:
    make("a", {"seed": 1})
    make("b", {"seed": 2})
    make("c", {"optimizer.lr": 0.5}, status="stopped")
    result = compare([tmp_path / "outputs"])
    figure = figures.curve(result, "val/loss")
    traces, run = figure.figure["data"], read_run(tmp_path / "outputs/a")
    assert len(traces) == 3
    assert [trace["showlegend"] for trace in traces] == [True, False, True]  # seeds share a name
    assert len({trace["line"]["color"] for trace in traces}) == 2
    values = [point.value for point in run.points["val/loss"]]
    assert traces[0]["y"] == values
    assert figure.axes["steps"][0] == [2, 4, 6, 8]
    assert figure.axes["FLOPs"][0][-1] == run.flops
    assert list(figure.axes) == ["steps", "tokens", "seconds of training", "FLOPs"]


def test_a_long_curve_is_thinned_and_keeps_its_ends(make, tmp_path) -> None:
    folder = make("a")
    lines = [f"{i},{i},{i},train/loss,{i}" for i in range(10_000)]
    (folder / "metrics.csv").write_text("step,seconds,tokens,name,value\n" + "\n".join(lines))
    drawn = figures.curve(compare([tmp_path / "outputs"]), "train/loss").figure["data"][0]["y"]
    assert len(drawn) <= 401
    assert (drawn[0], drawn[-1]) == (0, 9999)


def test_a_failed_run_does_not_squeeze_the_others(make, tmp_path) -> None:
    make("a", {"optimizer.lr": 0.1})
    folder = make("b", {"optimizer.lr": 9.0}, status="failed")
    with open(folder / "metrics.csv", "a") as file:
        file.write("9,1.0,1,val/loss,1000.0\n")
    low, high = figures.curve(compare([tmp_path / "outputs"]), "val/loss").figure["layout"]["yaxis"]["range"]
    assert 0 < low < high < 100


def test_names_of_runs_are_text_in_figures(make, tmp_path) -> None:
    make("<b>bold<i>", {"optimizer.lr": 0.1})
    make("b", {"optimizer.lr": 0.2})
    result = compare([tmp_path / "outputs"])
    for figure in (figures.curve(result, "val/loss"), figures.scatter(result, "val/loss", columns(result))):
        assert "<b>" not in str(figure.figure["data"])
        assert "&lt;b&gt;" in str(figure.figure["data"])


def test_many_runs_have_no_legend_and_a_colour_each(make, tmp_path) -> None:
    for i in range(35):
        make(f"r{i:02}", {"optimizer.lr": 0.1 + i}, {"val/loss": 2.0 + i})
    result = compare([tmp_path / "outputs"])
    figure = figures.curve(result, "val/loss").figure
    assert not figure["layout"]["showlegend"]
    assert len({trace["line"]["color"] for trace in figure["data"]}) > 25
