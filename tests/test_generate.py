"""`python -m lit_tfm.generate` as a person uses it: on runs trained here, moved away from where they were trained."""

import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.generate import generate
from lit_tfm.generation.text import harmless
from lit_tfm.runs import RunFolder
from lit_tfm.train import train

TINY = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.max_length=48", "data.block_size=32"]
STEPS = ["trainer.accelerator=cpu", "trainer.max_steps=3", "trainer.val_every=1.0", "data.val_limit=4", "budget=null"]
BYTES = ["model=gpt_tiny", "model.zero_init=false", "task=causal_lm", "tokenizer=byte", "data=text"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trained_runs, text_folder) -> dict[str, Path]:
    """A decoder of bytes and an encoder-decoder, moved after training; the texts they were trained on are gone."""
    base = tmp_path_factory.mktemp("generate")
    data = shutil.copytree(text_folder, base / "text")
    given = [*BYTES, *TINY, *STEPS, f"data.path={data}", f"cache_dir={base / 'cache'}"]
    train(config.compose([*given, f"output_dir={base / 'trained'}"]), quiet=True)
    for folder in (data, base / "cache"):
        shutil.rmtree(folder)
    spans = Path(shutil.copytree(trained_runs("spans"), base / "spans"))
    written = RunFolder(spans).config()
    written.data.path, written.cache_dir = str(base / "nowhere"), str(base / "nothing")
    RunFolder(spans).write_config(written)
    return {"decoder": Path(shutil.move(base / "trained", base / "decoder")), "encoder_decoder": spans}


@pytest.fixture
def say(capsys, monkeypatch):
    """`say("RUN", "--prompt", ...)`: (stdout, stderr) of the verb in this process."""

    def run(*arguments: object, stdin: bytes | None = None) -> tuple[str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        generate([str(argument) for argument in arguments])
        return capsys.readouterr()

    return run


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        generate([str(argument) for argument in arguments])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what it writes ----------------------------------------------------------------------------------------------


def test_a_decoder_goes_on(runs, say, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out, told = say(runs["decoder"], "--prompt", "The class", "--max-new-tokens", 20)
    assert out.startswith("The class")
    assert re.search(r"20 tokens in [\d.]+ s \([\d,]+ tokens/s\); temperature 0.8, top-k 40, seed 0\n", told)
    assert say(runs["decoder"], "--prompt", "The class", "--max-new-tokens", 20)[0] == out
    assert say(runs["decoder"], "--prompt", "The class", "--max-new-tokens", 20, "--seed", 1)[0] != out
    assert not list(tmp_path.iterdir())


def test_blanks_are_filled(runs, say):
    text = "The ___ statement raises <extra_id_0>."
    out, told = say(runs["encoder_decoder"], "--prompt", text)
    assert re.fullmatch(r"(?s)The .* statement raises .*\.\n", out)
    assert "greedy" in told
    [entry] = map(json.loads, say(runs["encoder_decoder"], "--prompt", text, "--json")[0].splitlines())
    assert f"The {entry['fills'][0]} statement raises {entry['fills'][1]}." == entry["text"] == out.removesuffix("\n")
    out, _ = say(runs["encoder_decoder"], "--prompt", "No blank at all", "--max-new-tokens", 5)
    assert "blank" not in out  # it answers, and repeats nothing


def test_several_prompts_samples_and_beams(runs, say):
    out, told = say(
        runs["decoder"], "--prompt", "One", "--prompt", "Another two", "--num-samples", 2, "--max-new-tokens", 6
    )
    titles = re.findall(r"^── (.*?) ─+$", out, re.M)
    assert titles == [f"prompt {p}, sample {s}" for p in (1, 2) for s in (1, 2)]
    assert "24 tokens" in told
    assert "4 texts" in told
    assert all(len(line) <= 80 for line in out.splitlines() if line.startswith("──"))
    out, _ = say(runs["decoder"], "--prompt", "One", "--beams", 3, "--num-samples", 3, "--max-new-tokens", 6)
    scores = [float(score) for score in re.findall(r"score (-[\d.]+)", out)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_scores_and_json(runs, say):
    arguments = [runs["decoder"], "--prompt", "The", "--max-new-tokens", 9, "--scores"]
    out, _ = say(*arguments)
    total = float(re.search(r"log-probability (-[\d.]+) of 9 tokens", out)[1])
    assert sum(float(value) for value in re.findall(r" (-\d+\.\d{3})(?= |$)", out, re.M)) == pytest.approx(
        total, abs=0.01
    )
    assert all(len(line) <= 80 for line in out.splitlines())
    [entry] = map(json.loads, say(*arguments, "--json")[0].splitlines())
    assert entry["log_probability"] == pytest.approx(total, abs=1e-3)
    assert len(entry["token_scores"]) == entry["tokens"] == 9
    assert entry["prompt"] == "The"
    assert entry["ended"] == "tokens"


def test_stop_strings_and_positions(runs, say):
    arguments = [runs["decoder"], "--prompt", "The", "--max-new-tokens", 100]
    whole, told = say(*arguments)
    assert "stopped at the model's 48 positions (--slide goes on)" in told
    longer, told = say(*arguments, "--slide")
    assert longer.startswith(whole.removesuffix("\n"))
    assert "100 tokens" in told
    written = json.loads(say(*arguments, "--json")[0])["text"]
    stop = written[10:13]
    cut = json.loads(say(*arguments, "--json", "--stop", stop)[0])
    assert (cut["text"], cut["ended"]) == (written[: written.index(stop)], "stop")


def test_prompts_from_files_and_standard_input(runs, say, tmp_path):
    (tmp_path / "start.txt").write_text("The cafés\n", encoding="utf-8")
    typed, _ = say(runs["decoder"], "--prompt", "The cafés", "--greedy", "--max-new-tokens", 8)
    assert say(runs["decoder"], "--file", tmp_path / "start.txt", "--greedy", "--max-new-tokens", 8)[0] == typed
    assert say(runs["decoder"], "--greedy", "--max-new-tokens", 8, stdin="The cafés\n".encode())[0] == typed
    assert say(runs["decoder"], "--prompt", "", "--max-new-tokens", 8)[0]  # a new document


def test_nothing_that_a_terminal_obeys(runs, say):
    """A byte model says any byte; its text must not move a cursor."""
    wild = ["--temperature", 30, "--max-new-tokens", 40, "--num-samples", 8]
    out, _ = say(runs["decoder"], "--prompt", "a\x1b[31mb", *wild)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out)
    assert "a\\x1b[31mb" in out
    assert "\\x" in out.replace("\\x1b[31m", "")


def test_checkpoints(runs, say, tmp_path):
    run = Path(shutil.copytree(runs["decoder"], tmp_path / "run"))
    folder = run / "checkpoints"
    arguments = ["--prompt", "The", "--greedy", "--max-new-tokens", 12]
    best = say(run, *arguments)[0]
    assert say(run, *arguments, "--checkpoint", folder / "best.safetensors")[0] == best
    assert say(run, *arguments, "--checkpoint", "best.ckpt")[0] == best
    state = {name: tensor.flip(0).contiguous() for name, tensor in load_file(folder / "best.safetensors").items()}
    save_file(state, tmp_path / "other.safetensors")
    assert say(run, *arguments, "--checkpoint", tmp_path / "other.safetensors")[0] != best
    for file in folder.glob("best*"):
        file.unlink()
    assert say(run, *arguments)[0] == say(run, *arguments, "--checkpoint", "last")[0]


def test_chat_keeps_what_was_said(runs, say):
    how = ["--max-new-tokens", 8, "--temperature", 1.5]

    def reply(text: str, turn: int = 0) -> str:
        """Each turn draws as another sample does."""
        answers = say(runs["decoder"], "--prompt", text, "--json", *how, "--num-samples", turn + 1)[0]
        return json.loads(answers.splitlines()[turn])["text"]

    def chat(lines: str, *options: str) -> tuple[str, str]:
        return say(runs["decoder"], "--chat", *how, *options, stdin=lines.encode())

    first = reply("Hello")
    second = reply(f"Hello{first}\nand", 1)
    assert second != reply("and", 1)  # or nothing would be told by it
    out, told = chat("Hello\nand\n/reset\nand\n/what\n/quit\nnever read\n")
    assert out == "".join(f"{harmless(text)}\n" for text in (first, second, reply("and", 2)))
    assert len(re.findall(r"^8 tokens, ", told, re.MULTILINE)) == 3
    assert "forgotten\n" in told
    assert "no command /what" in told
    out, told = chat("Hello\n" * 6)
    assert "the oldest turn is forgotten: the model has 48 positions" in told
    out, told = chat("x" * 100 + "\nHello\n")
    assert "error: the prompt is 100 tokens long" in told
    assert out == f"{harmless(first)}\n"  # and it was not said
    said = reply("Me: Hello\nIt: ")
    out, _ = chat("Hello\n", "--you", "Me: ", "--reply", "\\nIt: ", "--stop", said[2:4])
    assert out == f"{harmless(said[: said.index(said[2:4])])}\n"


def test_an_encoder_decoder_answers_each_line_for_itself(runs, say):
    out, told = say(runs["encoder_decoder"], "--chat", stdin=b"The ___ is\nThe ___ is\n\n")
    one, two = out.splitlines() if out.count("\n") == 2 else (out[: len(out) // 2], out[len(out) // 2 :])
    assert one == two
    assert one.startswith("The ")
    assert "error: the prompt is empty" in told


# ---- in a process and a terminal of its own ------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80"}


def test_the_command_line(runs, tmp_path):
    def command(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "lit_tfm.generate", *map(str, arguments)],
            capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    began = time.perf_counter()
    helped = command("--help")
    assert helped.returncode == 0
    assert time.perf_counter() - began < 10  # torch would be loaded otherwise; the machine may be busy
    assert all(len(line) <= 80 for line in helped.stdout.splitlines())
    done = command(runs["decoder"], "--prompt", "The", "--max-new-tokens", 5)
    assert done.returncode == 0
    assert done.stdout.startswith("The")
    done = command(runs["decoder"], "--temprature", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unrecognized arguments: --temprature 1, did you mean '--temperature'?\n"


def test_help_loads_nothing_heavy():
    code = "import sys; from lit_tfm.generate import parser; parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


class Terminal:
    """A process in a pseudo-terminal of 80 columns, typed at and read."""

    def __init__(self, *arguments: object, cwd: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execve(sys.executable, [sys.executable, "-m", "lit_tfm.generate", *map(str, arguments)], environment())
        self.seen = ""

    def until(self, pattern: str, seconds: float = 90.0) -> str:
        """What is shown up to a match of `pattern`, behind what was read before."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    data = b""
                assert data, f"ended without {pattern!r}: {self.seen!r}"
                self.seen += data.decode(errors="replace")
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def close(self) -> int:
        """Exit status."""
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_a_conversation_in_a_terminal(runs, tmp_path):
    terminal = Terminal(runs["decoder"], "--chat", "--max-new-tokens", "4000", "--slide", "--temperature", "0.9",
                        "--no-color", "--stop", "~~", cwd=tmp_path)  # fmt: skip
    shown = terminal.until(r"> ")
    assert "goes on with what is said; 48 positions, temperature 0.9, seed 0" in shown
    assert "/quit (or Ctrl-D) ends" in shown
    terminal.type("Hello there\r")
    terminal.until(r"Hello there\r\n")
    terminal.until(r"[^\x00-\x08\x0e-\x1f]{20}")  # it is written while it comes
    terminal.type("\x03")
    assert "Traceback" not in terminal.until(r"stopped\r\n[^>]*> ")
    terminal.type("/reset\r")
    terminal.until(r"forgotten\r\n[^>]*> ")
    terminal.type("/quit\r")
    assert terminal.close() == 0


def test_text_comes_to_a_terminal_in_colours_and_ends_with_one_line(runs, tmp_path):
    terminal = Terminal(runs["decoder"], "--prompt", "The", "--max-new-tokens", "12", cwd=tmp_path)
    shown = terminal.until(r"seed 0\x1b\[0m\r\n")
    assert shown.startswith("\x1b[36mThe\x1b[0m")
    assert "\x1b[2m12 tokens in" in shown
    assert terminal.close() == 0


# ---- what bad input gets ---------------------------------------------------------------------------------------------


def test_folders_that_are_no_runs(tmp_path, runs):
    assert "is no run folder" in refused(tmp_path, "--prompt", "x")
    assert "is no run folder" in refused(tmp_path / "nowhere", "--prompt", "x")
    (tmp_path / "config.yaml").write_text("model: [1, 2\n")
    assert "not the config of a run" in refused(tmp_path, "--prompt", "x")
    (tmp_path / "config.yaml").write_text("model: {d_model: 3}\n")
    assert "not the config of a run" in refused(tmp_path, "--prompt", "x")


@pytest.mark.parametrize(
    ("kind", "said"),
    [("encoder", "a classifier generates no text; predict does"), ("masked", "it fills masks; predict does")],
)
def test_tasks_that_write_nothing(trained_runs, kind, said):
    assert said in refused(trained_runs(kind), "--prompt", "x")


def test_a_run_without_weights_is_named(runs, tmp_path):
    run = Path(shutil.copytree(runs["decoder"], tmp_path / "run"))
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    RunFolder(run).update_summary(status="running")
    said = refused(run, "--prompt", "x")
    assert "the run (running) has no weights yet" in said
    assert f"resume={run}" in said


def test_an_unfinished_run_writes_with_what_it_has(runs, say, tmp_path):
    run = Path(shutil.copytree(runs["decoder"], tmp_path / "run"))
    arguments = ["--prompt", "The", "--max-new-tokens", 4]
    whole, told = say(run, *arguments)
    assert "the run is" not in told
    RunFolder(run).update_summary(status="failed")
    out, told = say(run, *arguments)
    assert out == whole
    assert f"{run}: the run is failed; its weights so far: best.safetensors\n" in told
    (run / "summary.json").write_text('{"status": "fin')
    assert "of unknown status" in say(run, *arguments)[1]


def test_weights_that_can_not_be_used(runs, tmp_path):
    run = Path(shutil.copytree(runs["decoder"], tmp_path / "run"))
    folder = run / "checkpoints"
    assert "did you mean 'last'" in refused(run, "--prompt", "x", "--checkpoint", "lats")
    (folder / "best.safetensors").write_bytes(b"\x10" * 100)
    assert "no checkpoint that can be read" in refused(run, "--prompt", "x")
    (folder / "evil.ckpt").write_bytes(b"garbage")
    assert "no checkpoint that can be read" in refused(run, "--prompt", "x", "--checkpoint", "evil.ckpt")
    torch.save({"state_dict": {}, "x": Path("p")}, folder / "pickled.ckpt")  # more than plain values
    assert "no checkpoint that can be read" in refused(run, "--prompt", "x", "--checkpoint", "pickled.ckpt")
    other = runs["encoder_decoder"] / "checkpoints" / "best.safetensors"
    shutil.copy(other, folder / "best.safetensors")
    (folder / "best.ckpt").unlink()
    assert "does not fit the run's config.yaml" in refused(run, "--prompt", "x")


def test_another_tokenizer_is_refused(runs, tmp_path):
    run = Path(shutil.copytree(runs["decoder"], tmp_path / "run"))
    shutil.copy(runs["encoder_decoder"] / "tokenizer.json", run / "tokenizer.json")
    assert "another tokenizer" in refused(run, "--prompt", "x")
    record = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**record, "tokenizer": None}))
    assert "in best.safetensors" in refused(run, "--prompt", "x")  # its .ckpt knows
    (run / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refused(run, "--prompt", "x")


def test_prompts_that_can_not_be(runs, tmp_path, monkeypatch):
    run = runs["decoder"]
    assert "the prompt is 300 tokens long, the model has 48 positions" in refused(run, "--prompt", "x" * 300)
    for content, said in (
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"a\0b", "binary"),
    ):
        (tmp_path / "prompt.txt").write_bytes(content)
        assert said in refused(run, "--file", tmp_path / "prompt.txt")
    assert "did you mean 'prompt.txt'" in refused(run, "--file", tmp_path / "promt.txt")
    assert "can't be read" in refused(run, "--file", tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "standard input is empty" in refused(run)
    assert "give a text with blanks" in refused(runs["encoder_decoder"], "--prompt", "")
    assert "need at least 5" in refused(runs["encoder_decoder"], "--prompt", "___ a ___", "--max-new-tokens", 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "x", "--temperature", "hot"], "invalid float value: 'hot'"),
        (["--prompt", "x", "--top-p", "1.5"], "above 0, at most 1"),
        (["--prompt", "x", "--beams", "4", "--temperature", "1"], "leave one out"),
        (["--prompt", "x", "--beams", "2", "--num-samples", "3"], "type --beams 3"),
        (["--prompt", "x", "--device", "gpu"], "there is auto, cpu"),
        (["--prompt", "x", "--chat"], "typed line by line"),
        (["--prompt", "x", "--you", "me"], "type --chat as well"),
        (["--chat", "--beams", "3"], "one reply at a time"),
        (["some text"], "behind --prompt"),
        (["--propmt", "x"], "did you mean '--prompt'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_can_not_be(runs, arguments, said):
    assert said in refused(runs["decoder"], *arguments)
