"""Runs are found wherever they lie, and of a broken one everything is read that can be."""

import csv
import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.reports.reading import AXES, curves, find_runs, read_points, read_run
from lit_tfm.reports.settings import load_yaml


def test_a_run_is_read_as_it_was_written(trained) -> None:
    run = read_run(trained)
    summary = json.loads((trained / "summary.json").read_text())
    assert (run.status, run.steps, run.seed, run.problems) == ("finished", 8, 1, [])
    for name in ("metrics", "best", "tokens", "seconds", "parameters", "monitor", "mode", "flops_per_token"):
        assert getattr(run, name) == summary[name]
    assert run.settings["model"] == "char_gpt"
    assert run.settings["model.d_model"] == 16
    assert run.flops == summary["flops_per_token"] * summary["tokens"] > 0


def test_curves_are_metrics_csv_on_four_axes(trained) -> None:
    with open(trained / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == "val/loss"]
    run = read_run(trained)
    steps, values = curves(run, "val/loss")
    assert steps == [2, 4, 6, 8] == [int(row["step"]) for row in rows]
    assert values == [float(row["value"]) for row in rows]
    assert values[-1] == run.metrics["val/loss"]
    tokens, _ = curves(trained, "val/loss", x="tokens")
    assert tokens[-1] == run.tokens
    assert curves(run, "val/loss", x="flops")[0] == [count * run.flops_per_token for count in tokens]
    assert all(list(curves(run, "val/loss", x=axis)[0]) == sorted(curves(run, "val/loss", x=axis)[0]) for axis in AXES)


def test_flops_of_older_runs_follow_from_their_speeds(make) -> None:
    told = read_run(make("new")).flops_per_token
    assert read_run(make("old", flops_per_token=None)).flops_per_token == pytest.approx(told)


def test_what_is_asked_wrongly_is_told(trained, make) -> None:
    with pytest.raises(UserError, match="logged no val/los, did you mean 'val/loss'"):
        curves(trained, "val/los")
    with pytest.raises(UserError, match="x=token: no such axis, did you mean 'tokens'"):
        curves(trained, "val/loss", x="token")
    folder = make("bare", flops_per_token=None)
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(line for line in lines if "speed/" not in line))
    with pytest.raises(UserError, match="FLOPs a token are not known"):
        curves(folder, "val/loss", x="flops")


# ---- finding -------------------------------------------------------------------------------------------------------


def test_runs_are_found_below_folders_and_by_globs_once_each(make, tmp_path, monkeypatch) -> None:
    for name in ("a/1", "a/2", "sweeps/s/trials/0000", "sweeps/s/trials/0001/seed-1", "sweeps/s/trials/0001/seed-2"):
        make(name)
    trial = tmp_path / "outputs/sweeps/s/trials"
    (trial / "0001/trial.json").write_text("{}")  # of the trial, whose runs are its seeds
    (trial / "0002").mkdir()
    (trial / "0002/trial.json").write_text('{"state": "failed", "params": {"optimizer.lr": 0.1}, "reason": "OOM"}')
    (tmp_path / "outputs/.multirun").mkdir()
    (tmp_path / "outputs/.multirun/config.yaml").write_text("a: 1")
    monkeypatch.chdir(tmp_path)
    found = find_runs()
    assert [str(path.relative_to("outputs")) for path in found] == [
        "a/1",
        "a/2",
        *(f"sweeps/s/trials/{name}" for name in ("0000", "0001/seed-1", "0001/seed-2", "0002")),
    ]
    assert find_runs(["outputs/a/*", "outputs/a", "outputs/a/1"]) == found[:2]
    assert find_runs([tmp_path / "outputs" / "a"]) == [tmp_path / "outputs/a/1", tmp_path / "outputs/a/2"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("outputs/z*", "matches nothing"),
        ("outputs/*/checkpoints*", "matches nothing"),
        ("outpust", "no such folder, did you mean 'outputs'"),
        ("empty", "no run folder, and none inside it"),
        ("outputs/a/config.yaml", "a file"),
    ],
)
def test_a_name_that_gives_no_run_is_told(given, says, make, tmp_path, monkeypatch) -> None:
    make("a")
    (tmp_path / "empty/deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        find_runs([given])


def test_a_folder_whose_name_is_a_pattern_is_taken_as_it_is(make, tmp_path) -> None:
    make("lr=[0.1]")
    assert len(find_runs([tmp_path / "outputs/lr=[0.1]"])) == 1


# ---- broken --------------------------------------------------------------------------------------------------------


def test_without_a_summary_the_csv_speaks(make) -> None:
    whole, folder = read_run(make("whole")), make("a")
    (folder / "summary.json").unlink()
    run = read_run(folder)
    assert run.status == "unknown"
    assert (run.steps, run.tokens) == (whole.steps, whole.tokens)
    assert run.metrics["val/loss"] == whole.metrics["val/loss"]
    assert run.best["val/loss"] == whole.best["val/loss"]
    assert run.best["step"] == whole.best["step"]
    assert "no summary.json" in run.problems[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\x00\xff\xfe", b'{"metrics": [], "status": 3, "steps": "x"}'])
def test_a_broken_summary_hides_nothing_else(content, make) -> None:
    folder = make("a")
    (folder / "summary.json").write_bytes(content)
    run = read_run(folder)
    assert run.settings["model.d_model"] == 16
    assert run.points["val/loss"]
    if content.startswith(b'{"metrics"'):
        assert (run.metrics, run.status, run.steps) == ({}, "unknown", None)
    else:
        assert run.metrics["val/loss"] > 0
        assert run.problems


BROKEN = [
    b"",
    b"- 1\n- 2",
    b"a: [",
    b"\xff\xfe\x00",
    b"a: !!python/object/apply:os.getcwd []",
    b"a: &x {b: *x}",
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_config_is_named(content, make) -> None:
    folder = make("a")
    (folder / "config.yaml").write_bytes(content)
    run = read_run(folder)
    assert "config.yaml can't be read" in run.problems[0]
    assert run.metrics["val/loss"] > 0


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "data.json", "metrics.csv", "trial.json"])
def test_a_folder_where_a_file_should_be_is_named(name, make) -> None:
    folder = make("a")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    run = read_run(folder)
    assert bool(run.points) == (name != "metrics.csv")
    assert any(name.partition(".")[0] in problem for problem in run.problems)


def test_torn_and_foreign_lines_of_the_csv_are_counted_and_left_out(make) -> None:
    folder = make("a")
    whole = read_points(folder / "metrics.csv")[0]["val/loss"]
    with open(folder / "metrics.csv", "a") as file:
        file.write("9,1.0,70,val/lo\nx,y,z,val/loss,1\n\0\0\0\n10,1.0,70,val/loss,nan\n")
    points, problem = read_points(folder / "metrics.csv")
    assert points["val/loss"][:-1] == whole
    assert math.isnan(points["val/loss"][-1].value)
    assert problem == "metrics.csv: 3 lines can't be read and are left out"


def test_a_step_that_stands_twice_is_one_point_the_later_one(tmp_path) -> None:
    """A run that went on from an older checkpoint, its csv appended by other means than MetricsCsv."""
    path = tmp_path / "metrics.csv"
    lines = [(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5), (4, 2.0)]
    path.write_text("step,seconds,tokens,name,value\n" + "\n".join(f"{s},{s},{s},val/loss,{v}" for s, v in lines))
    points, problem = read_points(path)
    assert [(p.step, p.value) for p in points["val/loss"]] == [(1, 5.0), (2, 4.5), (3, 3.5), (4, 2.0)]
    assert not problem


def test_a_trial_that_never_ran_shows_its_parameters_and_reason(tmp_path) -> None:
    trial = {"state": "failed", "params": {"optimizer.lr": 0.1}, "reason": "out of memory"}
    (tmp_path / "trial.json").write_text(json.dumps(trial))
    run = read_run(tmp_path)
    assert (run.status, run.reason, run.settings, run.problems) == (
        "failed",
        "out of memory",
        {"optimizer.lr": 0.1},
        [],
    )


def test_a_pruned_trial_is_not_running(make) -> None:
    folder = make("a", status="running")
    (folder / "trial.json").write_text('{"state": "pruned"}')
    assert read_run(folder).status == "pruned"


# ---- yaml ----------------------------------------------------------------------------------------------------------

EXPERIMENTS = sorted(p.stem for p in (config.CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_configs_are_read_as_omegaconf_reads_them(experiment, tmp_path) -> None:
    cfg = config.compose([f"experiment={experiment}"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    assert load_yaml(tmp_path / "config.yaml") == OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))


def test_values_that_yaml_readers_disagree_about(tmp_path) -> None:
    values = {
        "a": 1e-5,
        "b": "1e-3",
        "c": "2026-11-22",
        "d": "off",
        "e": "0x10",
        "f": 1e30,
        "g": "~",
        "h": float("inf"),
    }
    (tmp_path / "c.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    with open(tmp_path / "c.yaml", "a") as file:
        file.write("plain: 1e-3\nday: 2026-11-22\nlong: 1_000\nmost: .inf\n")
    assert load_yaml(Path(tmp_path / "c.yaml")) == OmegaConf.to_container(OmegaConf.load(tmp_path / "c.yaml"))
