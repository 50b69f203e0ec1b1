"""A comparison says what differs and nothing else, folds seeds and only seeds, and sorts the best first."""

import json
import shutil
import statistics

import pytest

from lit_tfm.errors import UserError
from lit_tfm.reports.columns import columns
from lit_tfm.reports.tables import compare, records, runs_table, to_frame


@pytest.fixture
def outputs(tmp_path):
    return [tmp_path / "outputs"]


def titles(found) -> list[str]:
    return [column.whole for column in found]


def test_only_what_differs_is_shown(make, outputs) -> None:
    make("a", {"optimizer.lr": 0.1, "model.d_model": 16})
    make("b", {"optimizer.lr": 0.2, "model.d_model": 16, "output_dir": "elsewhere", "name": "other"})
    result = compare(outputs)
    assert result.settings == ["optimizer.lr"]
    assert [row.name for row in result.rows] == ["a", "b"]
    assert titles(columns(result)) == [
        *("run", "lr", "val/loss best", "val/loss last", "tokens", "time", "params", "FLOPs"),
    ]


def test_a_key_that_one_run_lacks_is_a_difference(make, outputs) -> None:
    make("a")
    make("b", {"model.softcap": 30})
    result = compare(outputs)
    assert result.settings == ["model.softcap"]
    assert [row.run.settings.get("model.softcap") for row in result.rows] in ([None, 30], [30, None])
    assert set(columns(result)[1].cells) == {"–", "30"}


def test_names_are_as_short_as_they_can_be_told_apart(make, outputs) -> None:
    make("a", {"data.text": 1, "data.hub.text": 1, "optimizer.lr": 1})
    make("b", {"data.text": 2, "data.hub.text": 2, "optimizer.lr": 2})
    assert set(titles(columns(compare(outputs)))[1:4]) == {"data.text", "hub.text", "lr"}


def test_seeds_become_mean_and_deviation(make, outputs) -> None:
    losses = [3.0, 3.2, 3.7]
    for seed, loss in zip((1, 2, 3), losses, strict=True):
        make(f"s{seed}", {"seed": seed}, {"val/loss": loss}, seconds=10.0 * seed)
    make("other", {"seed": 1, "optimizer.lr": 0.5}, {"val/loss": 9.0})
    result = compare(outputs)
    folded, other = result.rows
    assert (folded.name, len(folded.runs), other.name) == ("s1 +2 seeds", 3, "other")
    assert result.settings == ["optimizer.lr"]
    assert folded.value("val/loss") == pytest.approx(statistics.fmean(losses))
    assert folded.spread("val/loss") == pytest.approx(statistics.stdev(losses))
    assert folded.value("seconds") == 20.0
    assert folded.spread("optimizer.lr") is None
    loss = next(column for column in columns(result) if column.key == "val/loss")
    assert loss.cells == ["3.30 ± 0.36", "9.000"]
    record = records(result)[0]
    assert (record["n"], record["val/loss std"]) == (3, pytest.approx(statistics.stdev(losses)))
    assert len(compare(outputs, fold=False).rows) == 4


def test_what_is_unfinished_or_a_repetition_is_not_folded(make, outputs) -> None:
    make("a", {"seed": 1}, {"val/loss": 3.0})
    make("b", {"seed": 2}, {"val/loss": 4.0})
    make("c", {"seed": 3}, {"val/loss": 5.0}, status="stopped")
    make("d", {"seed": 2}, {"val/loss": 6.0})  # the same again: not a third seed
    result = compare(outputs)
    assert [(row.name, len(row.runs)) for row in result.rows] == [("a +1 seed", 2), ("c", 1), ("d", 1)]
    status = next(column for column in columns(result) if column.key == "status")
    assert status.cells == ["finished", "stopped", "finished"]


def test_other_data_under_the_same_name_is_told_and_not_folded(make, outputs) -> None:
    make("a", {"seed": 1})
    changed = make("b", {"seed": 2})
    data = json.loads((changed / "data.json").read_text())
    (changed / "data.json").write_text(json.dumps({**data, "hash": "0123456789", "name": "pydoc"}))
    result = compare(outputs)
    assert len(result.rows) == 2
    assert {"data.hash", "data.used"} <= set(result.settings)
    assert any("do not compare" in note for note in result.notes)


def test_sorting_puts_the_best_first_and_the_unknown_last(make, outputs) -> None:
    for name, loss, accuracy in (("a", 3.0, 0.1), ("b", 1.0, 0.3), ("c", 2.0, 0.2)):
        make(name, {"optimizer.lr": loss}, {"val/loss": loss, "val/accuracy": accuracy})
    shutil.rmtree(make("d", {"optimizer.lr": 4.0}) / "summary.json", ignore_errors=True)
    (outputs[0] / "d/summary.json").write_text('{"status": "running"}')

    def order(**options) -> str:
        return "".join(row.name for row in compare(outputs, **options).rows)

    assert order() == "bcad"
    assert order(sort="val/accuracy") == "bcad"
    assert order(sort="val/loss", reverse=True) == "acbd"
    assert order(sort="lr") == "bcad"
    assert order(sort="run", reverse=True) == "dcba"
    with pytest.raises(UserError, match="--sort val/los: no run has val/los, did you mean 'val/loss'"):
        compare(outputs, sort="val/los")


def test_values_that_can_be_nothing_do_not_stop_it(make, outputs) -> None:
    make("a", {"optimizer.lr": 0.1}, {"val/loss": 2.0})
    make("b", {"optimizer.lr": 0.2}, {"val/loss": float("nan")})
    make("c", {"optimizer.lr": 0.3}, {"val/loss": 1.0})
    strange = make("d", {"optimizer.betas": [0.9, 0.95]}, {"val/loss": float("inf")})
    (strange / "data.json").write_text('{"hash": ["x"], "name": {}}')
    with open(strange / "config.yaml", "a") as file:
        file.write("odd: !!set {x, y}\n1: {2: 3}\n")
    result = compare(outputs)
    assert [row.name for row in result.rows] == ["c", "a", "d", "b"]
    assert columns(result, metrics=["all"])
    assert records(result)


def test_where_picks_runs_before_and_means_after_folding(make, outputs) -> None:
    for seed, loss in ((1, 3.0), (2, 5.0)):
        make(f"s{seed}", {"seed": seed}, {"val/loss": loss})
    make("other", {"optimizer.lr": 0.5}, {"val/loss": 9.0})
    assert [row.name for row in compare(outputs, where="seed == 2").rows] == ["s2"]
    good = compare(outputs, where="val/loss < 4.5")  # the mean: the worse seed must not be dropped from it
    assert [(row.name, row.value("val/loss")) for row in good.rows] == [("s1 +1 seed", 4.0)]
    assert good.notes[0].startswith("1 of 3 runs do not pass")
    with pytest.raises(UserError, match="none of 2 runs passes"):
        compare(outputs, where="val/loss < 1")


def test_best_and_last_are_told_apart(make, outputs) -> None:
    folder = make("a", metrics={"val/loss": 5.0})
    summary = json.loads((folder / "summary.json").read_text())
    summary["best"]["val/loss"] = 3.0
    (folder / "summary.json").write_text(json.dumps(summary))
    result = compare(outputs)
    cells = {column.whole: column.cells[0] for column in columns(result)}
    assert (cells["val/loss best"], cells["val/loss last"]) == ("3.000", "5.000")
    assert "val/loss last" not in titles(columns(result, which="best"))
    assert "val/loss best" not in titles(columns(result, which="last"))
    assert compare(outputs, where="val/loss < 4", best=True).rows
    with pytest.raises(UserError, match="none of 1 runs passes"):
        compare(outputs, where="val/loss < 4")


def test_metrics_and_columns_are_chosen_by_name_or_glob(make, outputs) -> None:
    make("a")
    result = compare(outputs)
    assert "val/bits_per_byte last" in titles(columns(result, metrics=["val/b*"]))
    assert set(result.metrics) <= {column.key for column in columns(result, metrics=["all"])}
    assert titles(columns(result, only=["d_model", "best/val/loss", "tokens"])) == [
        *("run", "model.d_model", "val/loss best", "tokens"),
    ]
    for options in ({"metrics": ["val/los"]}, {"only": ["val/los"]}):
        with pytest.raises(UserError, match="did you mean 'val/loss'"):
            columns(result, **options)


def test_a_broken_run_is_a_row_and_a_note(make, outputs) -> None:
    make("a")
    (make("b") / "config.yaml").write_text("a: [")
    result = compare(outputs)
    assert len(result.rows) == 2
    assert any("b: config.yaml can't be read" in note for note in result.notes)
    assert result.settings == []  # what is not known does not differ


def test_a_failed_run_says_why(make, outputs) -> None:
    make("a", status="failed", reason="training loss is nan\nat step 5")
    assert any("failed: training loss is nan at step 5" in note for note in compare(outputs).notes)


def test_the_notebooks_door(make, outputs) -> None:
    make("a", {"optimizer.lr": 0.1})
    make("b", {"optimizer.lr": 0.2})
    rows = runs_table(outputs[0])
    assert [row["optimizer.lr"] for row in rows] == [0.1, 0.2]
    for key in ("run", "path", "status", "val/loss", "best/val/loss", "tokens", "seconds", "parameters", "flops"):
        assert all(row[key] is not None for row in rows), key
    pandas = pytest.importorskip("pandas")
    frame = to_frame(rows)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["optimizer.lr"]) == [0.1, 0.2]
