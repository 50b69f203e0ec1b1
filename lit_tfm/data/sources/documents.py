"""Running text cut into documents."""

import re
from collections.abc import Callable, Iterable, Iterator

from lit_tfm.errors import UserError, nearest

# An article of WikiText starts with a line ` = Title = ` between blank lines. Sections have more signs (` = = `), and
# a line of that form inside a paragraph (tables, formulas) is none: 29 such lines in WikiText-2's training text.
ARTICLE = re.compile(r"\n ?\n( = (?!= )[^\n]+ = \n)(?= *\n)")


def split_documents(blocks: Iterable[str], how: str) -> Iterator[str]:
    """Documents of a text that comes in blocks of whole lines.

    `file`: all of it. `line`: every line that is not blank. `paragraph`: what blank lines part. `wikitext`: an
    article; put together again, these (and `file`) are the text itself.
    """
    if how not in WAYS:
        raise UserError(f"data.document={how}: one of {', '.join(WAYS)}{nearest(how, WAYS)}")
    yield from WAYS[how](blocks)


def _file(blocks: Iterable[str]) -> Iterator[str]:
    if text := "".join(blocks):
        yield text


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    for block in blocks:
        yield from (line for line in block.split("\n") if line and not line.isspace())


def _paragraphs(blocks: Iterable[str]) -> Iterator[str]:
    lines: list[str] = []
    for block in filter(None, blocks):
        for line in block.split("\n")[: -1 if block.endswith("\n") else None]:
            if line and not line.isspace():
                lines.append(line)
            elif lines:
                yield "\n".join(lines)
                lines = []
    if lines:
        yield "\n".join(lines)


def _articles(blocks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        for title in ARTICLE.finditer(rest):
            if rest[start : title.start()].strip():  # blank lines before the first title go with it
                yield rest[start : title.start(1)]
                start = title.start(1)
        rest = rest[start:]
    if rest:
        yield rest


WAYS: dict[str, Callable[[Iterable[str]], Iterator[str]]] = {
    "file": _file,
    "line": _lines,
    "paragraph": _paragraphs,
    "wikitext": _articles,
}
