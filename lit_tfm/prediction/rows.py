"""What predictions are asked for: texts of a file, of stdin, or of the command line, as rows in their order."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_tfm.data.sources.columns import Column, Columns
from lit_tfm.data.sources.reading import kind_of, read_blocks, read_table
from lit_tfm.errors import UserError, nearest


@dataclass(frozen=True)
class Row:
    values: dict[str, Any]  # the columns of the input
    text: str
    text_b: str | None = None


def is_pair(cfg: DictConfig) -> bool:
    """Whether the run's examples have two texts."""
    return any(OmegaConf.select(cfg, key) is not None for key in ("data.text_b", "data.hub.text_b"))


def of_words(words: Sequence[str], pair: bool) -> list[Row]:
    """Texts of the command line, taken two by two where the run reads pairs."""
    if not pair:
        return [Row({"text": word}, word) for word in words]
    if len(words) % 2:
        raise UserError(f"{len(words)} texts: the run reads pairs, so their number is even; type predict RUN 'A' 'B'")
    return [Row({"text": a, "text_b": b}, a, b) for a, b in zip(words[::2], words[1::2], strict=True)]


def whole(text: str | None) -> str | None:
    """Without halves of surrogate pairs, which JSON may hold and UTF-8, so a tokenizer, may not."""
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class Table:
    """Rows of a file, which is read again each time: it may be larger than memory.

    text, text_b: columns, by name or, where there is no header, by position; by default those the run was trained on,
    else `text` and `text_b`. Lines of a text file are texts; a tab parts the two of a pair.
    errors: strict or replace, as for training data.
    """

    def __init__(
        self,
        path: Path,
        cfg: DictConfig,
        text: Sequence[str] = (),
        text_b: Sequence[str] = (),
        name: str | None = None,
        errors: str = "strict",
    ) -> None:
        self.path, self.pair, self.name, self.errors = path, is_pair(cfg), name or str(path), errors
        if not path.is_file():
            near = nearest(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else ""
            raise UserError(f"--file {path}: there is no such file{near}")
        self.kind = kind_of(path) or "text"
        if self.kind == "text" and (text or text_b):
            raise UserError(f"--column: {self.name} has lines, not columns; give a csv, tsv, jsonl or parquet file")
        self.header = not (text and all(column.isdigit() for column in text))
        self.columns = None if self.kind == "text" else self._columns(cfg, text, text_b)

    def __iter__(self) -> Iterator[Row]:
        if self.columns is None:
            yield from self._lines()
            return
        for where, values in self._read():
            found = self.columns.example(values, where)
            texts = (found["text"], found["text_b"])
            yield Row({str(key): value for key, value in values.items()}, *(whole(text) for text in texts))

    def _read(self) -> Iterator[tuple[str, dict]]:
        return read_table(self.path, self.kind, self.header, errors=self.errors)

    def chunks(self, size: int, skip: int = 0) -> Iterator[list[Row]]:
        rows = islice(self, skip, None)
        while chunk := list(islice(rows, size)):
            yield chunk

    def survey(self) -> tuple[int, str, list[str]]:
        """How many rows there are, a hash of the file, and the columns.

        All is read once, so that a mistake in the last row is told before anything is computed.
        """
        count, names = 0, {}
        for row in self:
            count += 1
            names |= dict.fromkeys(row.values)
        if not count:
            raise UserError(f"{self.name}: there are no rows; give a file with some")
        return count, sha256_of(self.path), list(names)

    def _lines(self) -> Iterator[Row]:
        number = 0
        for block in read_blocks(self.path, self.errors):
            for line in block.removesuffix("\n").split("\n"):
                number += 1
                if not self.pair:
                    yield Row({"text": line}, line)
                    continue
                a, tab, b = line.partition("\t")
                if not tab:
                    raise UserError(f"{self.name}: line {number} has no tab; the run reads pairs, a tab parts the two")
                yield Row({"text": a, "text_b": b}, a, b)

    def _columns(self, cfg: DictConfig, text: Sequence[str], text_b: Sequence[str]) -> Columns:
        names = list(
            next((values for _, values in read_table(self.path, self.kind, self.header, errors=self.errors)), {})
        )
        first = self._chosen("--column", names, text, cfg, "text")
        second = self._chosen("--column-b", names, text_b, cfg, "text_b") if self.pair else None
        if text_b and not self.pair:
            raise UserError("--column-b: the run reads single texts; leave it away")
        return Columns(first, second, None)

    def _chosen(
        self, option: str, names: list, given: Sequence[str], cfg: DictConfig, key: str
    ) -> Column | list[Column]:
        """The column, or several that are joined: what was asked for, else the first usual one that is there."""
        if given:
            options = [list(given) if self.header else [int(column) for column in given]]
        else:
            usual = [OmegaConf.select(cfg, f"data.{key}"), OmegaConf.select(cfg, f"data.hub.{key}"), key]
            options = [[columns] if isinstance(columns, str) else list(columns) for columns in usual if named(columns)]
        for columns in options:
            if all(column in names for column in columns):
                return columns[0] if len(columns) == 1 else columns
        missing = str(next(column for column in options[0] if column not in names))
        there = f"there is {', '.join(map(str, names))}" if names else "the file has no rows"
        raise UserError(
            f"{self.name}: no column {missing!r}{nearest(missing, map(str, names))}; {there}; type {option} NAME, or a "
            "number from 0 where there is no header"
        )


def named(columns: Any) -> bool:
    """Whether columns are given by name; those by position are of files without a header."""
    if columns is None or isinstance(columns, int):
        return False
    return isinstance(columns, str) or all(isinstance(column, str) for column in columns)


def kept_stdin(folder: str | Path) -> Path:
    """What stands on stdin, in a file of the folder: it is read more than once."""
    path = Path(folder) / "stdin.txt"
    with open(path, "wb") as file:
        while block := sys.stdin.buffer.read(1 << 20):
            file.write(block)
    return path


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
