"""Nothing from data steers the terminal."""

import contextlib
import io
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rich.console import Group
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from lit_tfm import config, evaluate, predict
from lit_tfm.compare import compare, parser
from lit_tfm.console import Console
from lit_tfm.terminal import out, visible
from lit_tfm.train import train


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("two\nlines\r\nand\tone", "two↵ lines↵ and one"),
        ("\x1b[31mred\x1b[0m\x07", "\\x1b[31mred\\x1b[0m\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("turned \u202e round", "turned \\u202e round"),
        ("naïve 字 👩‍💻", "naïve 字 👩‍💻"),
        ("a\rb", "a\\rb"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(max_size=60), st.one_of(st.none(), st.integers(10, 40)))
def test_no_control_character_gets_through(text: str, limit: int | None) -> None:
    shown = visible(text, limit)
    assert not {unicodedata.category(symbol) for symbol in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert limit is None or len(shown) <= limit


def test_a_long_text_keeps_its_ends() -> None:
    shown = visible("begin " + "middle " * 1000 + "end", 30)
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert len(shown) <= 30


# ---- what people see of it -------------------------------------------------------------------------------------

# A clear screen, a title, a link, a turned text, a bell; what rich reads as a style, a link, an emoji.
EVIL = (
    "\x1b[2J\x1b]0;owned\x07\x1b]8;;http://x\x1b\\\x9b2J\u202e\x08"
    + "[bold red]b[/] [link=http://x]l[/link] :bomb: [/nothing]"
)
EFFECTS = re.compile(r"\x1b\[[\d;]*m")  # colours: rich's own


def shows_only_text(shown: str) -> None:
    plain = EFFECTS.sub("", shown)
    unsafe = {symbol for symbol in plain if unicodedata.category(symbol) in ("Cc", "Cf") and symbol not in "\n\r\t"}
    assert not unsafe, plain
    assert "]8;" not in re.sub(r"\\x1b\]8;", "", shown)  # a link, if it were one


def printed(*things, **options) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=400, **options)
    console.print(*things)
    return file.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        str,
        Text,
        lambda text: Panel(Text(text), title=Text(text)),
        lambda text: Group(text, Padding(text)),
        lambda text: table_of(text),
    ],
    ids=["str", "text", "panel", "group", "table"],
)
def test_the_console_shows_texts_as_they_are(make) -> None:
    shown = printed(make(EVIL))
    shows_only_text(shown)
    for part in ("\\x1b[2J", "\\x9b2J", "\\u202e", "[bold red]b[/]", "[link=http://x]l[/link]", ":bomb:", "[/nothing]"):
        assert part in EFFECTS.sub("", shown)


def table_of(text: str) -> Table:
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    return table


@given(st.text(max_size=60))
def test_no_text_steers_the_console(text: str) -> None:
    shows_only_text(printed(text))


def test_a_bar_still_moves_the_cursor() -> None:
    file = io.StringIO()
    with Progress(console=Console(file=file, force_terminal=True, width=80)) as bars:
        bars.add_task("working", total=2)
    assert "\x1b[2K" in file.getvalue()
    assert "working" in file.getvalue()


def test_every_console_is_that_one() -> None:
    package = Path(__file__).parent.parent / "lit_tfm"
    other = re.compile(r"rich\.console import[^\n]*\bConsole\b|from_markup|markup=True")
    assert [path for path in package.rglob("*.py") if other.search(path.read_text())] == []


PROGRAM = f"""
import logging, os, sys
from lit_tfm import terminal
from lit_tfm.command_line import run_verb
from lit_tfm.errors import UserError

EVIL = {EVIL!r}

def verb():
    logging.getLogger("x").warning("log %s", EVIL)
    terminal.out("out " + EVIL)
    if sys.argv[1] == "mistake":
        raise UserError("mistake " + EVIL)
    raise ValueError("defect " + EVIL)

sys.exit(run_verb(verb))
"""


@pytest.mark.parametrize("kind", ["mistake", "defect"])
def test_errors_and_logs_in_a_real_terminal(kind: str, tmp_path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), kind], stdin=slave, stdout=slave, stderr=slave, close_fds=True
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(master, 1 << 16):
            shown += part
    os.close(master)
    assert process.wait() == (2 if kind == "mistake" else 1)
    text = shown.decode()
    shows_only_text(text)
    assert all(word in text for word in ("log ", "out ", f"{kind} ", "\\x1b[2J"))
    assert ("Traceback" in text) == (kind == "defect")


def test_a_program_gets_the_text_as_it_is(capsys) -> None:
    out(EVIL)
    assert capsys.readouterr().out == EVIL + "\n"


def test_a_run_over_evil_data_in_a_real_terminal(tmp_path, session_cache) -> None:
    """Labels, texts, a file's name, tags: through training, prediction, evaluation and comparison."""
    data = tmp_path / "a\x1b[31m[bold]b.csv"
    labels = ("\x1b[2J[link=http://x]ham", "\u202espam\x9b2J")
    rows = [f'"{EVIL} {i}","{labels[i % 2]}"' for i in range(40)]
    data.write_text("\n".join(["text,label", *rows]) + "\n")
    words = ["model=bert_tiny", "task=classification", "data=csv", "tokenizer=byte", "model.d_model=16"]
    words += ["model.n_layers=1", "model.n_heads=1", "trainer.accelerator=cpu", "trainer.max_steps=1", "budget=null"]
    file = io.StringIO()

    def console(**options):
        return Console(**{**options, "file": file, "force_terminal": True, "width": 200})

    modules = ("session", "callbacks.progress_bar", "console", "prediction.work")
    with pytest.MonkeyPatch.context() as patched:
        for module in modules:
            patched.setattr(f"lit_tfm.{module}.Console", console)
        cfg = config.compose([*words, f"cache_dir={session_cache}", f"output_dir={tmp_path / 'run'}"])
        OmegaConf.update(cfg, "data.path", str(data), force_add=True)
        OmegaConf.update(cfg, "tags", [EVIL])
        train(cfg)
        (tmp_path / "run").rename(tmp_path / "run\x1b[2J[bold]x")
        run = str(tmp_path / "run\x1b[2J[bold]x")
        predict.predict([run, EVIL])
        evaluate.evaluate([run, "--split", "validation", "--resamples", "0"])
        compare(parser().parse_args([run]))
    shown = file.getvalue()
    shows_only_text(shown)
    assert all(word in EFFECTS.sub("", shown) for word in ("[bold]b.csv", "[link=http://x]ham", "run\\x1b[2J"))
