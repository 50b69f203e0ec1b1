"""evaluate on runs of every architecture and task: the figures of training, from elsewhere, and what is refused."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.evaluate import evaluate
from lit_tfm.train import train

KINDS = ("masked", "causal", "spans", "encoder", "decoder", "encoder_decoder", "pairs", "several")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' working directory: not the one the runs were trained in."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "elsewhere"


def examples(run: Path, name: str) -> list[dict[str, str]]:
    with open(run / "evaluation" / f"{name}.examples.csv", newline="") as file:
        return list(csv.DictReader(file))


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_those_of_training(learnt, kind, capsys) -> None:
    run = learnt(kind)
    capsys.readouterr()  # of the training
    report = evaluate([str(run), "--split", "validation", "--resamples", "30"])
    plain = {name.removeprefix("pseudo_"): value for name, value in report["metrics"].items()}
    trained = {k.removeprefix("val/"): v for k, v in summary(run)["best"].items() if k.startswith("val/")}
    assert trained
    assert {name: plain[name] for name in trained} == pytest.approx(trained, rel=1e-5, abs=1e-6)
    assert all(
        low - 1e-9 <= report["metrics"][name] <= high + 1e-9
        for name, (low, high) in report["intervals"].items()
        if name != "ece"  # chance alone parts confidence from accuracy: resamples have more of it
    )
    assert json.loads((run / "evaluation" / "validation.json").read_text())["metrics"] == report["metrics"]
    shown = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in shown.splitlines() if str(run) not in line and ".csv" not in line) <= 80


@pytest.mark.parametrize("kind", ["masked", "spans", "encoder", "decoder", "encoder_decoder", "pairs"])
def test_examples_add_up_to_the_loss(learnt, kind) -> None:
    run = learnt(kind)
    report = evaluate([str(run), "--split", "validation", "--resamples", "0"])
    rows = examples(run, "validation")
    losses, targets = [float(row["loss"]) for row in rows], [float(row.get("targets", 1)) for row in rows]
    assert sum(losses) / sum(targets) == pytest.approx(report["metrics"]["loss"], rel=1e-6)
    assert [int(row["index"]) for row in rows] == list(range(len(rows)))
    assert report["examples"]["count"] == len(rows)
    assert report["intervals"] == {}


def test_perplexities_of_a_masked_model_are_called_pseudo(learnt) -> None:
    metrics = evaluate([str(learnt("masked")), "--resamples", "0"])["metrics"]
    assert {"pseudo_perplexity", "pseudo_word_perplexity", "pseudo_bits_per_byte"} <= metrics.keys()
    assert not {"perplexity", "word_perplexity", "bits_per_byte"} & metrics.keys()


def test_sliding_windows_see_more_and_are_stored_by_example(learnt) -> None:
    run = learnt("causal")
    report = evaluate([str(run), "--context", "64", "--stride", "16", "--name", "narrow", "--resamples", "20"])
    assert report["split"] == "test"
    assert report["sliding"] == {"context": 64, "stride": 16}
    rows = examples(run, "narrow")
    total = sum(int(row["targets"]) for row in rows)
    assert total == report["tokens"]
    loss = sum(float(row["loss"]) for row in rows) / total
    assert report["metrics"]["sliding_loss"] == pytest.approx(loss, rel=1e-6)
    assert report["metrics"]["sliding_perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    low, high = report["intervals"]["sliding_loss"]
    assert low < loss < high


def test_the_same_command_gives_the_same_bytes(learnt) -> None:
    run = learnt("encoder")
    files = []
    for _ in range(2):
        evaluate([str(run)])
        files.append([path.read_bytes() for path in sorted((run / "evaluation").iterdir())])
    assert files[0] == files[1]


def test_the_analysis_of_errors(learnt, trained_runs) -> None:
    run = learnt("encoder")
    report = evaluate([str(run), "--mistakes", "4"])
    rows, shown = examples(run, "validation"), report["mistakes"]["most_confident"]
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    assert report["mistakes"]["count"] == len(wrong)
    surest = sorted(wrong, key=lambda row: -float(row["probability"]))[:4]
    assert [row["index"] for row in shown] == [int(row["index"]) for row in surest]
    source = (trained_runs("encoder").parent / "encoder.csv").read_text()
    assert all(f"{row['text']},{row['label']}\n" in source for row in shown)
    assert sum(row["examples"] for row in report["by_length"]) == len(rows)
    assert sum(map(sum, report["confusion"])) == len(rows)
    pair = report["most_confused"][0]
    met = [row for row in wrong if (row["label"], row["predicted"]) == (pair["label"], pair["predicted"])]
    assert pair["count"] == len(met)


# ---- which weights -----------------------------------------------------------------------------------------------


def test_checkpoints(learnt) -> None:
    run = learnt("encoder")
    found = {}
    for name in ("best", "last", "best.ckpt", str(run / "checkpoints" / "last.ckpt")):
        found[name] = evaluate([str(run), "--checkpoint", name, "--resamples", "0"])["metrics"]["loss"]
    assert found["best"] == found["best.ckpt"] == pytest.approx(summary(run)["best"]["val/loss"], rel=1e-6)
    assert found["last"] == found[str(run / "checkpoints" / "last.ckpt")]
    assert found["last"] == pytest.approx(summary(run)["metrics"]["val/loss"], rel=1e-6)
    assert {path.stem for path in (run / "evaluation").glob("*.json")} == {"validation", "validation-last"}
    with pytest.raises(UserError, match="lst"):
        evaluate([str(run), "--checkpoint", "lst"])


def test_an_unfinished_run_is_read_and_said(learnt, capsys) -> None:
    run = learnt("encoder")
    (run / "summary.json").write_text(json.dumps({**summary(run), "status": "failed", "reason": "it \x1b[31mfell"}))
    evaluate([str(run), "--resamples", "0"])
    shown = capsys.readouterr().out
    assert "the run is not finished: failed after 12 steps" in " ".join(shown.split())
    assert "\x1b" not in shown
    (run / "summary.json").write_text("{ half")
    assert "not known" in " ".join(evaluate([str(run), "--resamples", "0"])["notes"])


# ---- which data --------------------------------------------------------------------------------------------------


def test_a_relative_path_is_found_from_elsewhere(tmp_path, elsewhere, labelled_csv, session_cache, monkeypatch) -> None:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    shutil.copy(labelled_csv, home / "data" / "reviews.csv")
    monkeypatch.chdir(home)
    options = ["model=bert_tiny", "model.d_model=32", "task=classification", "data=csv", "data.path=data/reviews.csv"]
    options += ["tokenizer.vocab_size=320", "trainer.max_steps=1", "trainer.accelerator=cpu", "output_dir=run"]
    train(config.compose([*options, f"cache_dir={session_cache}"]), quiet=True)
    monkeypatch.chdir(elsewhere)
    assert evaluate([str(home / "run"), "--resamples", "0"])["data"]["own"]
    (home / "data").rename(home / "moved")
    with pytest.raises(UserError, match=r"looked for .*elsewhere/data/reviews.csv and .*home/data/reviews.csv"):
        evaluate([str(home / "run")])
    report = evaluate([str(home / "run"), f"data.path={home / 'moved' / 'reviews.csv'}", "--resamples", "0"])
    assert report["data"]["own"]  # the same content elsewhere: the split of training, not the whole file
    assert report["examples"]["count"] == 24


def test_other_files_are_evaluated_whole_with_the_labels_of_the_run(learnt, elsewhere) -> None:
    run = learnt("encoder")
    (elsewhere / "new.csv").write_text("text,label\nwe saw a great film,plain\nwas awful,bad\nthe dull film,bad\n")
    report = evaluate([str(run), "data.path=new.csv", "--resamples", "0"])
    assert report["labels"] == ["bad", "good", "plain"]
    assert [row["examples"] for row in report["by_class"]] == [2, 0, 1]
    assert not report["data"]["own"]
    assert [row["label"] for row in examples(run, "new")] == ["plain", "bad", "bad"]
    evaluate([str(run), "--data", "csv", "data.path=new.csv", "--split", "test", "--resamples", "0"])
    assert examples(run, "csv-test") == examples(run, "new")


def test_changed_data_are_noticed(tmp_path, learnt, labelled_csv) -> None:
    run = learnt("encoder")
    cfg = (run / "config.yaml").read_text()
    path = next(line.split(": ")[1] for line in cfg.splitlines() if line.strip().startswith("path:"))
    other = tmp_path / "changed.csv"
    other.write_text(Path(path).read_text() + "one more,good\n")
    (run / "config.yaml").write_text(cfg.replace(path, str(other)))
    assert "content has changed" in " ".join(evaluate([str(run), "--resamples", "0"])["notes"])


def test_a_limit_measures_a_part(learnt) -> None:
    report = evaluate([str(learnt("encoder")), "data.val_limit=10", "--resamples", "0"])
    assert report["examples"]["count"] == 10
    report = evaluate([str(learnt("causal")), "data.test_limit=3", "--resamples", "0"])
    assert report["examples"]["count"] < 12


def test_control_characters_of_texts_stay_out_of_the_terminal(learnt, elsewhere, capsys) -> None:
    (elsewhere / "new.csv").write_text('text,label\n"a \x1b[2J\x07 film\nand more",good\n"\x9b31m it",bad\n')
    evaluate([str(learnt("encoder")), "data.path=new.csv"])
    shown = capsys.readouterr().out
    assert "\\x1b[2J\\x07 film↵ and more" in shown or "\\x9b31m it" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("encoder", ["--split", "tset"], "did you mean 'test'"),
        ("encoder", ["--split", "test"], "has train, validation"),
        ("encoder", ["model.d_model=64"], "settled by the run"),
        ("encoder", ["data=sst2"], "--data NAME"),
        ("encoder", ["data.labell=x"], "did you mean 'label'"),
        ("encoder", ["nonsense"], "key=value"),
        ("encoder", ["--data", "agnews"], "did you mean 'ag_news'"),
        ("encoder", ["--data", "text", "data.path=new.csv"], "the run is a classifier"),
        ("causal", ["--data", "csv", "data.path=new.csv"], "the run is a language model"),
        ("causal", ["--context", "1000"], "positions for 256"),
        ("causal", ["--stride", "0"], "--stride 0"),
        ("encoder", ["data.path=new.csv"], "label 'odd', which the run does not know; there is bad, good, plain"),
        ("encoder", ["data.path=new.csv", "data.label=lable"], "no column 'lable'"),
        ("encoder", ["data.path=empty.csv"], "empty"),
        ("encoder", ["data.path=binary.csv"], "binary"),
        ("encoder", ["data.path=gone.csv"], "there is no"),
        ("encoder", ["--name", "../up"], "--name"),
        ("encoder", ["--resamples", "-1"], "not negative"),
    ],
)
def test_what_is_refused(learnt, elsewhere, kind, arguments, said) -> None:
    (elsewhere / "new.csv").write_text("text,label\na film,good\nan odd one,odd\n")
    (elsewhere / "empty.csv").write_text("")
    (elsewhere / "binary.csv").write_bytes(b"text,label\nab\x00cd,good\n")
    with pytest.raises(UserError) as told:
        evaluate([str(learnt(kind)), *arguments])
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "no weights yet"),
        (lambda run: (run / "config.yaml").unlink(), "no run folder"),
        (lambda run: (run / "config.yaml").write_text("just: words"), "not the config of a run"),
        (lambda run: (run / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda run: (run / "data.json").write_text("{ half"), "data.json"),
        (lambda run: (run / "checkpoints/best.safetensors").write_bytes(b"not weights"), "can be read"),
    ],
)
def test_broken_runs_are_named(learnt, damage, said) -> None:
    run = learnt("encoder")
    damage(run)
    with pytest.raises(UserError) as told:
        evaluate([str(run)])
    assert said in str(told.value)
    assert "encoder" in str(told.value)


def test_a_tokenizer_of_another_run(learnt) -> None:
    run = learnt("encoder")
    shutil.copy(learnt("decoder") / "tokenizer.json", run / "tokenizer.json")
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate([str(run)])


def test_the_command_line_says_one_line_from_any_directory(elsewhere) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lit_tfm.evaluate", str(elsewhere)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_help_answers_without_torch(verb) -> None:
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['lit_tfm.{verb}', '--help']\n"
        f"try: runpy.run_module('lit_tfm.{verb}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'lightning', 'datasets', 'numpy'} & set(sys.modules), 'imported something heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout
