"""Text from data and files on its way to a terminal, which obeys control characters: none may get through."""

import logging
import re
import sys
import traceback
import unicodedata

# Controls (C0, C1, delete), and what changes the direction of the text around it or joins it invisibly.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # parts of words in Persian or Hindi, and of emoji
_BLANKS = re.compile(r"[ \t]+")


def visible(text: str, limit: int | None = None) -> str:
    """On one line and without effects: line ends are shown as ↵, other control characters by their number (\\x1b).

    limit: characters at most; a longer text loses its middle, for the ends tell most.
    """
    text = _BLANKS.sub(" ", text.replace("\r\n", "\n").replace("\n", "↵ ")).strip()
    if limit is not None and len(text) > 4 * limit:  # whatever it holds, no more can be shown
        text = f"{text[: 2 * limit]}{text[-2 * limit :]}"
    text = "".join(symbol if symbol.isascii() and symbol.isprintable() else _shown(symbol) for symbol in text)
    if limit is None or len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 3]} … {text[len(text) - tail :]}"


def harmless(text: str) -> str:
    """As `visible`, but lines, tabs and blanks stay: for what has a layout, such as a csv or a traceback."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(symbol if symbol in "\n\t" else _shown(symbol) for symbol in text)


def out(text: str) -> None:
    """To stdout, with a line end: whole where a program reads it, harmless where a person does."""
    print(harmless(text) if sys.stdout.isatty() else text, flush=True)


def guard() -> None:
    """Tracebacks and what is logged, which quote file names and texts, reach the terminal without effects as well."""
    sys.excepthook = _tell
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def _tell(kind: type[BaseException], error: BaseException, trace) -> None:
    sys.stderr.write(harmless("".join(traceback.format_exception(kind, error, trace))))


def _shown(symbol: str) -> str:
    if symbol in _JOINERS or unicodedata.category(symbol) not in _UNSAFE:
        return symbol
    return ascii(symbol)[1:-1]
