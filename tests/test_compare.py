"""The verb compare, as it is typed: its formats, its mistakes, its speed. (What the parts do: tests/reports.)"""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_tfm import compare as verb
from lit_tfm import config
from lit_tfm.command_line import run_verb
from lit_tfm.evaluate import evaluate
from lit_tfm.train import train


@pytest.fixture(scope="session")
def trained(text_folder: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "run"
    given = ["experiment=char_gpt", f"data.path={text_folder}", f"cache_dir={session_cache}", "budget=null"]
    given += ["model.d_model=16", "model.n_layers=1", "model.n_heads=1", "trainer.precision=32", "data.val_limit=8"]
    given += ["trainer.max_steps=8", "trainer.val_every=2", "trainer.log_every=1", "trainer.accelerator=cpu"]
    train(config.compose([*given, f"output_dir={folder}"]), quiet=True)
    shutil.rmtree(folder / "checkpoints")
    return folder


def copies(trained: Path, outputs: Path, count: int) -> None:
    """Runs of other settings and seeds: what `cp -r` and an edited yaml make."""
    text = (trained / "config.yaml").read_text()
    summary = json.loads((trained / "summary.json").read_text())
    for i in range(count):
        folder = outputs / f"run{i:03}"
        shutil.copytree(trained, folder)
        seed = 1 + i % 4
        changed = text.replace("\nseed: 1\n", f"\nseed: {seed}\n").replace("n_layers: 1", f"n_layers: {1 + i // 4}")
        (folder / "config.yaml").write_text(changed)
        loss = 3.0 + 0.1 * (i // 4) + 0.01 * seed
        for kind in ("metrics", "best"):
            summary[kind]["val/loss"] = loss
        (folder / "summary.json").write_text(json.dumps({**summary, "seed": seed}))


@pytest.fixture
def outputs(trained, tmp_path, monkeypatch) -> Path:
    """Eight runs: two settings of four seeds each, under outputs/ of the working directory."""
    copies(trained, tmp_path / "outputs", 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "outputs"


def typed(capsys, *arguments: str) -> tuple[int, str, str]:
    status = run_verb(lambda: verb.compare(verb.parser().parse_args(arguments)))
    out, err = capsys.readouterr()
    return status, out, err


def test_the_table_fits_the_terminal_and_names_what_does_not(outputs, capsys, monkeypatch) -> None:
    status, out, _ = typed(capsys)
    assert status == 0
    assert max(map(len, out.splitlines()[:9])) <= 80
    assert "8 runs in outputs, 2 settings" in out
    for text in ("run000 +3 seeds", "3.025 ± 0.013", "3.125 ± 0.013", "n_layers", "FLOPs"):
        assert text in out
    assert "no room" not in out
    monkeypatch.setenv("COLUMNS", "40")
    _, narrow, _ = typed(capsys, "--each-seed", "--metrics", "all")
    table, told = narrow.split("no room for ")
    assert max(map(len, table.splitlines())) <= 40
    assert "val/perplexity" in told or "more: --columns chooses" in told


def test_a_few_runs_stand_side_by_side(outputs, capsys) -> None:
    _, out, _ = typed(capsys, "outputs/run000", "outputs/run004", "--metrics", "all")
    assert "no room" not in out
    assert any(line.split() == ["n_layers", "1", "2"] for line in out.splitlines())
    assert any(line.split()[:2] == ["val/bits_per_byte", "last"] for line in out.splitlines())


def test_markdown_is_a_table_that_can_be_pasted(outputs, capsys) -> None:
    status, out, err = typed(capsys, "--format", "markdown", "--last", "--where", "n_layers < 2")
    head, rule, *rows = out.splitlines()
    assert (status, len(rows)) == (0, 1)
    assert head.startswith("| run | ")
    assert "val/loss" in head
    assert "best" not in head
    assert set(rule) <= set("|-: ")
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    assert "4 of 8 runs do not pass" in err


def test_csv_and_json_hold_whole_numbers(outputs, capsys) -> None:
    _, out, _ = typed(capsys, "--format", "csv", "--each-seed")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 8
    assert {row["val/loss"] for row in rows} == {repr(3.0 + 0.1 * (i // 4) + 0.01 * (1 + i % 4)) for i in range(8)}
    assert all(float(row["flops"]) > 0 and row["status"] == "finished" for row in rows)
    _, out, _ = typed(capsys, "--format", "json", "--sort", "val/loss", "--reverse")
    found = json.loads(out)
    assert [row["n"] for row in found] == [4, 4]
    assert found[0]["val/loss"] > found[1]["val/loss"]
    assert found[0]["val/loss std"] == pytest.approx(0.0129, abs=1e-4)
    _, out, _ = typed(capsys, "--format", "json", "--columns", "n_layers")
    assert set(json.loads(out)[0]) == {"run", "path", "status", "n", "model.n_layers"}


def test_against_a_baseline(outputs, capsys) -> None:
    for i in range(8):
        (outputs / f"run{i:03}/evaluation").mkdir()
        lines = [f"{j},{(3 + i // 4) * 10 + (j % 7)},10" for j in range(50)]
        path = outputs / f"run{i:03}/evaluation/test.examples.csv"
        path.write_text("index,loss,targets\n" + "\n".join(lines))
    status, out, _ = typed(capsys, "--baseline", "outputs/run00[0-3]")
    assert status == 0
    assert "Against run000 +3 seeds, on test" in out
    line = next(line for line in out.splitlines() if "+1.0000" in line)
    assert "worse" in line
    _, out, _ = typed(capsys, "--baseline", "outputs/run000", "--each-seed", "--format", "json")
    differences = [row["test loss difference"] for row in json.loads(out) if "test loss difference" in row]
    assert differences == pytest.approx([0.0] * 3 + [1.0] * 4)


def test_broken_and_unfinished_runs_are_named_and_shown(outputs, capsys) -> None:
    (outputs / "run000/config.yaml").write_text("\x00")
    (outputs / "run001/summary.json").write_text("{")
    summary = json.loads((outputs / "run002/summary.json").read_text())
    (outputs / "run002/summary.json").write_text(json.dumps({**summary, "status": "running"}))
    status, out, _ = typed(capsys, "--each-seed", "--columns", "status", "val/loss")
    assert status == 0
    assert "run000: config.yaml can't be read" in out
    assert "run001: summary.json can't be read" in out
    assert any(line.split()[:2] == ["run002", "running"] for line in out.splitlines())
    assert any(line.split()[:2] == ["run001", "unknown"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing*"], "nothing*: matches nothing"),
        (["outputz"], "no such folder, did you mean 'outputs'"),
        (["--where", "val/loss >"], "ends too early"),
        (["--where", "val/lss < 1"], "did you mean 'val/loss'"),
        (["--sort", "n_layer"], "did you mean 'model.n_layers'"),
        (["--metrics", "val/lss"], "did you mean 'val/loss'"),
        (["--columns", "n_layer"], "did you mean 'model.n_layers'"),
        (["--best", "--last"], "one of them"),
        (["--baseline", "outputs"], "holds 8 runs of several settings"),
        (["--html", "/dev/null/x.html"], "can't be written"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, says, outputs, capsys) -> None:
    status, _, err = typed(capsys, *arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert says in err


def test_the_report_is_written_whole(outputs, capsys) -> None:
    status, out, _ = typed(capsys, "--html", "reports/report.html")
    assert status == 0
    assert "written: reports/report.html" in out
    text = (outputs.parent / "reports/report.html").read_text()
    assert text.count("plotly.js v") >= 1
    for part in ("8 runs in outputs", "Cost against quality", "seconds of training", "../outputs/run000/"):
        assert part in text


@pytest.mark.parametrize("experiment", ["bert_small", "gpt_small", "t5_small"])
def test_runs_of_any_architecture_from_elsewhere_without_their_data(
    experiment, text_folder, session_cache, tmp_path, monkeypatch, capsys
) -> None:
    shutil.copytree(text_folder, tmp_path / "data")
    given = [f"experiment={experiment}", f"data.path={tmp_path / 'data'}", f"cache_dir={session_cache}", "budget=null"]
    given += ["model.d_model=16", "model.n_layers=1", "model.n_heads=1", "trainer.precision=32", "data.val_limit=4"]
    given += ["trainer.max_steps=4", "trainer.val_every=2", "data.block_size=32", "data.batch_size=4"]
    given += ["trainer.accelerator=cpu", "tokenizer.vocab_size=400"]
    for lr in (0.001, 0.01):
        train(
            config.compose([*given, f"optimizer.lr={lr}", f"output_dir={tmp_path / 'outputs' / str(lr)}"]), quiet=True
        )
    (tmp_path / "data").rename(tmp_path / "gone")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("COLUMNS", "100")
    status, out, err = typed(capsys, "../outputs", "--html", "report.html")
    assert (status, err) == (0, "")
    assert "2 runs in ../outputs" in out
    assert "no room" not in out
    for title in ("lr", "val/loss", "tokens", "FLOPs"):
        assert title in out
    assert "Curves" in Path("report.html").read_text()


def test_differences_of_runs_that_evaluate_measured(labelled_csv, session_cache, tmp_path, monkeypatch, capsys) -> None:
    """A trained classifier against one that has learnt nothing, over the test examples of both."""
    given = ["model=bert_tiny", "task=classification", "data=csv", f"data.path={labelled_csv}", "budget=null"]
    given += [f"cache_dir={session_cache}", "model.d_model=32", "model.n_layers=1", "model.n_heads=1", "seed=3"]
    given += ["trainer.precision=32", "trainer.accelerator=cpu", "tokenizer.vocab_size=300", "trainer.max_epochs=null"]
    monkeypatch.chdir(tmp_path)
    for name, steps in (("guess", 1), ("learnt", 40)):
        train(config.compose([*given, f"trainer.max_steps={steps}", f"output_dir=outputs/{name}"]), quiet=True)
    status, out, _ = typed(capsys, "--baseline", "outputs/guess")
    assert status == 0
    assert "python -m lit_tfm.evaluate outputs/guess; python -m lit_tfm.evaluate outputs/learnt" in out
    for name in ("guess", "learnt"):
        evaluate([f"outputs/{name}", "--resamples", "0"])
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = typed(capsys, "--baseline", "outputs/guess")
    line = next(line.split() for line in out.splitlines() if line.split()[1:2] == ["accuracy"])
    assert line[0] == "learnt"
    assert "better" in line
    _, out, _ = typed(capsys, "--baseline", "outputs/guess", "--format", "json")
    learnt = next(row for row in json.loads(out) if row["run"] == "learnt")
    measured = [json.loads(path.read_text())["metrics"] for path in sorted(Path("outputs").glob("*/evaluation/*.json"))]
    name = next(key.removesuffix(" difference") for key in learnt if key.endswith("accuracy difference"))
    assert learnt[f"{name} difference"] == pytest.approx(measured[1]["accuracy"] - measured[0]["accuracy"])
    assert learnt[f"{name} difference low"] > 0


def test_control_characters_of_a_run_reach_no_terminal(outputs, capsys) -> None:
    summary = json.loads((outputs / "run000/summary.json").read_text())
    told = {**summary, "status": "failed", "reason": "\x1b]0;owned\x07 [red]x"}
    (outputs / "run000/summary.json").write_text(json.dumps(told))
    _, out, err = typed(capsys)
    assert "\x1b" not in out + err
    assert "[red]x" in out


def test_two_hundred_runs_within_three_seconds_without_torch(trained, tmp_path) -> None:
    """As a new process from another folder. One thread does it all, so its processor time is the time on an idle
    machine; the wall's clock would measure what else runs here."""
    copies(trained, tmp_path / "outputs", 200)
    program = [
        "import sys, resource",
        "from lit_tfm import compare",
        f"sys.argv = ['compare', {str(tmp_path / 'outputs')!r}, '--format', 'csv']",
        "try: compare.main()",
        "except SystemExit as end: assert end.code == 0",
        "heavy = {'torch', 'lightning', 'datasets', 'transformers', 'plotly', 'pandas', 'numpy'} & set(sys.modules)",
        "assert not heavy, heavy",
        "used = resource.getrusage(resource.RUSAGE_SELF)",
        "print(used.ru_utime + used.ru_stime, file=sys.stderr)",
    ]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(verb.__file__).parent.parent)},
    )
    wall = time.perf_counter() - begun
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 51
    assert min(wall, float(done.stderr.splitlines()[-1])) < 3


def test_help_tells_the_language_in_80_columns(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        verb.parser().parse_args(["--help"])
    assert "--where" in (out := capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 80
