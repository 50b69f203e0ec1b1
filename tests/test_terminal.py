"""Nothing from data steers the terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.terminal import visible


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
