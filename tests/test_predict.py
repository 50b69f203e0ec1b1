"""predict on runs of every architecture, without their data: what it says, reads, writes, goes on with and refuses."""

import csv
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from lit_tfm.errors import UserError
from lit_tfm.evaluate import evaluate
from lit_tfm.predict import predict
from lit_tfm.prediction import work

CLASSIFIERS = ("encoder", "decoder", "encoder_decoder", "pairs", "several")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "elsewhere"


@pytest.fixture
def run(learnt):
    """A run whose config names data that are not there."""

    def make(kind: str) -> str:
        folder = learnt(kind)
        config = folder / "config.yaml"
        lines = [line if "  path:" not in line else "  path: gone.csv" for line in config.read_text().splitlines()]
        config.write_text("\n".join(lines) + "\n")
        return str(folder)

    return make


def rows(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_predictions_are_those_that_evaluate_measures(learnt, run, trained_runs, kind, elsewhere) -> None:
    source = trained_runs(kind).parent / f"{kind}.csv"
    evaluate([str(learnt(kind, "measured")), f"data.path={{train: {source}, test: {source}}}", "--resamples", "0"])
    (measured,) = (elsewhere.parent / "measured" / "evaluation").glob("*.examples.csv")
    predict([run(kind), "--file", str(source), "--output", "out.csv", *(["--column-b", "second"] * (kind == "pairs"))])
    found, expected = rows("out.csv"), rows(measured)
    assert [row["predicted"] for row in found] == [row["predicted"] for row in expected]
    labels = [[set(row["label"].split("|")) for row in part] for part in (found, expected)]
    assert labels[0] == labels[1]  # the input's columns are kept
    if kind != "several":
        assert [float(row["probability"]) for row in found] == pytest.approx(
            [float(row["probability"]) for row in expected], abs=2e-6
        )


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_texts_of_the_command_line(run, kind, capsys) -> None:
    folder = run(kind)
    capsys.readouterr()
    predict([folder, "a great film", "an \x1b[31mawful one", "--top", "2"])
    shown = capsys.readouterr().out
    assert "a great film" in shown
    assert "an \\x1b[31mawful one" in shown
    assert "\x1b" not in shown
    assert any(name in shown for name in ("good", "bad", "plain"))
    assert max(map(len, shown.splitlines())) <= 80


def test_masks_are_filled(run, capsys, elsewhere) -> None:
    folder = run("masked")
    capsys.readouterr()
    predict([folder, "The [MASK] statement is [MASK].", "--top", "3"])
    shown = capsys.readouterr().out
    assert "The [MASK] statement is [MASK]." in shown
    assert sum("█" in line or "0.0" in line for line in shown.splitlines()) >= 6
    (elsewhere / "in.txt").write_text("the [MASK] is\nnothing hidden\n\nit <mask> [MASK]\n")
    predict([folder, "--file", "in.txt", "--output", "out.jsonl", "--top", "2"])
    found = [json.loads(line) for line in (elsewhere / "out.jsonl").read_text().splitlines()]
    assert [len(row["masks"]) for row in found] == [1, 0, 0, 2]
    assert all(len(mask) == 2 for row in found for mask in row["masks"])
    assert found[1]["filled"] == "nothing hidden"
    assert "[MASK]" not in found[0]["filled"] + found[3]["filled"]
    assert found[0]["filled"].startswith("the")
    assert found[0]["filled"].endswith(" is")
    assert "2 texts without a [MASK]" in capsys.readouterr().err
    predict([folder, "--file", "in.txt", "--output", "out.csv"])
    assert json.loads(rows("out.csv")[3]["masks"])[1][0][0] == found[3]["masks"][1][0]["token"]


def test_quotes_line_ends_and_columns_come_through(run, elsewhere) -> None:
    texts = ['he said "no", twice', "two\nlines", "carriage\rreturn", " blanks ", "", "naïve 字", "=1+1;x,y"]
    with open(elsewhere / "in.csv", "w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(["id", "text", "predicted"])
        written.writerows([i, text, "before"] for i, text in enumerate(texts))
    predict([run("encoder"), "--file", "in.csv", "--output", "out.csv"])
    found = rows("out.csv")
    assert [row["text"] for row in found] == texts
    assert [row["id"] for row in found] == [str(i) for i in range(len(texts))]
    assert {row["predicted"] for row in found} == {"before"}
    assert {row["predicted_2"] for row in found} <= {"good", "bad", "plain"}
    predict([run("decoder"), "--file", "out.csv", "--output", "again.jsonl"])  # our own output reads back
    again = [json.loads(line) for line in (elsewhere / "again.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["text"] for row in again] == texts
    assert {"predicted", "predicted_2", "predicted_3"} <= again[0].keys()


def test_every_format_gives_the_same_answers(run, elsewhere) -> None:
    texts = ["a great film", "it was awful", "the same story we know"]
    (elsewhere / "in.txt").write_text("\n".join(texts) + "\n")
    (elsewhere / "in.jsonl").write_text("".join(json.dumps({"review": text, "n": [1]}) + "\n" for text in texts))
    (elsewhere / "in.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    folder, answers = run("encoder"), []
    for name, options in (("in.txt", []), ("in.jsonl", ["--column", "review"]), ("in.tsv", ["--column", "1"])):
        predict([folder, "--file", name, *options, "--output", f"{name}.csv"])
        answers.append([(row["predicted"], row["probability"]) for row in rows(f"{name}.csv")])
    assert answers[0] == answers[1] == answers[2]
    assert rows("in.jsonl.csv")[0]["n"] == "[1]"


def test_stdin_and_stdout(run, monkeypatch, capsysbinary) -> None:
    folder = run("encoder")
    capsysbinary.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a great film\nit was \x1bawful\n")))
    predict([folder])
    shown = capsysbinary.readouterr()
    found = list(csv.DictReader(io.StringIO(shown.out.decode())))
    assert [row["text"] for row in found] == ["a great film", "it was \x1bawful"]  # to a pipe as it is
    assert b"\x1b" not in shown.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UserError, match="stdin: the file is empty"):
        predict([folder])


def alone(arguments: list[str]) -> None:
    """predict in a process of its own, forked: importing everything anew would be most of the test."""
    torch.set_num_threads(1)
    predict(arguments)


def test_a_killed_command_goes_on_to_the_same_bytes(run, elsewhere, capsys) -> None:
    rows = [[i, f"a film {i % 97} was\n{'it ' * (i % 13)}"] for i in range(9000)]
    with open("in.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    folder = run("encoder")
    predict([folder, "--file", "in.csv", "--output", "whole.csv"])
    again, out = [folder, "--file", "in.csv", "--output", "out.csv"], Path("out.csv")
    for _ in range(2):
        before = out.stat().st_size if out.exists() else 0
        process = multiprocessing.get_context("fork").Process(target=alone, args=(again,))
        process.start()
        while process.is_alive() and (not out.exists() or out.stat().st_size <= before + 100):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert Path("out.csv.progress").exists()
        assert 0 < out.stat().st_size < Path("whole.csv").stat().st_size
    capsys.readouterr()
    predict(again)
    assert "going on after" in capsys.readouterr().err
    assert out.read_bytes() == Path("whole.csv").read_bytes()
    assert not Path("out.csv.progress").exists()


@pytest.mark.parametrize("where", ["before the head", "in a chunk", "between output and progress"])
def test_whatever_moment_it_stops_at(run, elsewhere, monkeypatch, where) -> None:
    monkeypatch.setattr(work, "CHUNK", 8)
    (elsewhere / "in.txt").write_text("".join(f"film {i}\n" for i in range(30)))
    folder = run("encoder")
    predict([folder, "--file", "in.txt", "--output", "whole.csv"])
    with monkeypatch.context() as patch:
        write, calls = work.Output.append, []

        def append(self, text: str, rows: int) -> None:
            calls.append(rows)
            if where == "before the head" or len(calls) == 3:
                if where != "before the head":
                    self.file.write(text.encode()[: len(text) // 2 if where == "in a chunk" else None])
                    self.file.flush()
                raise RuntimeError("pulled the plug")
            write(self, text, rows)

        patch.setattr(work.Output, "append", append)
        with pytest.raises(RuntimeError):
            predict([folder, "--file", "in.txt", "--output", "out.csv"])
    predict([folder, "--file", "in.txt", "--output", "out.csv"])
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_ctrl_c_says_how_far_it_came_and_other_work_is_refused(run, elsewhere, monkeypatch, capsys) -> None:
    monkeypatch.setattr(work, "CHUNK", 2)
    (elsewhere / "in.txt").write_text("one\ntwo\nthree\nfour\n")
    (elsewhere / "other.txt").write_text("five\nsix\n")
    folder = run("encoder")
    predict([folder, "--file", "in.txt", "--output", "whole.csv"])
    with pytest.raises(UserError, match=r"whole.csv exists"):
        predict([folder, "--file", "in.txt", "--output", "whole.csv"])
    plain, calls = work.Labels.predict, []

    def interrupted(self, rows):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(work.Labels, "predict", interrupted)
        with pytest.raises(SystemExit) as ended:
            predict([folder, "--file", "in.txt", "--output", "part.csv"])
    assert ended.value.code == 130
    assert "stopped after 2 of 4 texts" in capsys.readouterr().err
    for given, said in (
        ([folder, "--file", "other.txt"], "another input"),
        ([folder, "--file", "in.txt", "--top", "2"], "another top"),
        ([run("decoder"), "--file", "in.txt"], "another run, checkpoint"),
    ):
        with pytest.raises(UserError, match=said):
            predict([*given, "--output", "part.csv"])
    predict([folder, "--file", "in.txt", "--output", "part.csv"])
    assert Path("part.csv").read_bytes() == Path("whole.csv").read_bytes()
    predict([folder, "--file", "other.txt", "--output", "part.csv", "--overwrite"])
    assert [row["text"] for row in rows("part.csv")] == ["five", "six"]


def test_long_texts_are_cut_and_counted_once(run, elsewhere, capsys) -> None:
    (elsewhere / "in.txt").write_text(f"{'film ' * 400}\nshort\n{'story ' * 300}\n")
    predict([run("encoder"), "--file", "in.txt", "--output", "out.csv"])
    err = capsys.readouterr().err
    assert err.count("cut to the 128 tokens") == 1
    assert "2 texts cut" in err
    assert len(rows("out.csv")) == 3
    predict([run("masked"), f"{'the ' * 600}[MASK] {'is ' * 600}"])
    assert "1 text cut to the 512 tokens around the first mask" in capsys.readouterr().err


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("causal", ["a text"], "lit_tfm.generate"),
        ("spans", ["a text"], "lit_tfm.generate"),
        ("masked", ["nothing to fill"], "[MASK] to fill"),
        ("pairs", ["only one"], "pairs"),
        ("pairs", ["--file", "in.csv"], "--column-b"),
        ("pairs", ["--file", "in.txt"], "tab"),
        ("encoder", ["--file", "gone.csv"], "no such file"),
        ("encoder", ["--file", "inn.csv"], "did you mean 'in.csv'"),
        ("encoder", ["--file", "in.csv", "--column", "txt"], "did you mean 'text'?; there is id, text"),
        ("encoder", ["--file", "other.csv"], "no column 'text'; there is id, review"),
        ("encoder", ["--file", "in.txt", "--column", "text"], "has lines"),
        ("encoder", ["--file", "in.csv", "--column-b", "id"], "single texts"),
        ("encoder", ["--file", "empty.csv"], "empty"),
        ("encoder", ["--file", "head.csv"], "no rows"),
        ("encoder", ["--file", "binary.txt"], "binary"),
        ("encoder", ["--file", "ragged.csv"], "3 fields, the first has 2"),
        ("encoder", ["--file", "in.csv", "--output", "out.xlsx"], ".csv or .jsonl"),
        ("encoder", ["--file", "in.csv", "--output", "no/where/out.csv"], "can't be written"),
        ("encoder", ["a text", "--file", "in.csv"], "give one of them"),
        ("encoder", ["a text", "--top", "0"], "--top 0"),
        ("encoder", ["a text", "--checkpoint", "bset"], "did you mean 'best'"),
    ],
)
def test_what_is_refused(run, elsewhere, kind, arguments, said) -> None:
    (elsewhere / "in.csv").write_text("id,text\n1,a film\n")
    (elsewhere / "other.csv").write_text("id,review\n1,a film\n")
    (elsewhere / "in.txt").write_text("a film\n")
    (elsewhere / "empty.csv").write_text("")
    (elsewhere / "head.csv").write_text("id,text\n")
    (elsewhere / "binary.txt").write_bytes(b"a film\x00\n")
    (elsewhere / "ragged.csv").write_text("id,text\n1,a film\n2,a,film\n")
    with pytest.raises(UserError) as told:
        predict([run(kind), *arguments])
    assert said in str(told.value)
    assert not Path("out.csv").exists()


def test_what_is_not_utf8_is_refused_or_replaced(run, elsewhere) -> None:
    (elsewhere / "in.txt").write_bytes(b"caf\xe9 film\n")
    folder = run("encoder")
    with pytest.raises(UserError, match=r"not UTF-8 .* --errors replace"):
        predict([folder, "--file", "in.txt", "--output", "out.csv"])
    predict([folder, "--file", "in.txt", "--output", "out.csv", "--errors", "replace"])
    assert rows("out.csv")[0]["text"] == "caf\ufffd film"


def test_a_folder_that_is_no_run(elsewhere) -> None:
    with pytest.raises(UserError, match="no run folder"):
        predict([str(elsewhere), "a text"])
