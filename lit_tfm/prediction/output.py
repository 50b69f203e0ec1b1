"""A file of predictions that grows chunk by chunk, so that a run killed at any moment goes on to the same bytes.

Beside it stands `<output>.progress` until all rows are done: of what input and with what run and options, how many rows
and bytes of the output are good. It is replaced after a chunk has reached the disk; what the output holds beyond is cut
off when the next run goes on.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_tfm.errors import UserError
from lit_tfm.prediction.predictor import Prediction
from lit_tfm.prediction.rows import Row
from lit_tfm.runs import write_text
from lit_tfm.terminal import visible


class Lines:
    """Predictions as csv or jsonl: the input's own columns, then those of the prediction."""

    def __init__(self, kind: str, names: list[str], added: list[str]) -> None:
        self.kind, self.names = kind, names
        self.added = [free(name, names) for name in added]

    def head(self) -> str:
        return written([*self.names, *self.added]) if self.kind == "csv" else ""

    def chunk(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> str:
        pairs = zip(rows, predictions, strict=True)
        if self.kind == "csv":
            return "".join(written([*(cell(row.values.get(n)) for n in self.names), *p.cells]) for row, p in pairs)
        lines = ({**row.values, **{free(k, list(row.values)): v for k, v in p.json.items()}} for row, p in pairs)
        return "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)


def free(name: str, taken: list[str]) -> str:
    """`predicted`, or `predicted_2` where the input has such a column."""
    number, wanted = 1, name
    while wanted in taken:
        number += 1
        wanted = f"{name}_{number}"
    return wanted


def written(cells: Sequence[str]) -> str:
    """One csv line. All cells in quotes where one holds a lone carriage return: csv.writer would leave it bare."""
    line = io.StringIO()
    quoting = csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL
    csv.writer(line, lineterminator="\n", quoting=quoting).writerow(cells)
    return line.getvalue()


def cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class Output:
    """`work` names the input, the run and the options; going on with other work is refused."""

    def __init__(self, path: Path, work: dict[str, Any], overwrite: bool = False) -> None:
        self.path, self.work = path, work
        self.progress = path.with_name(f"{path.name}.progress")
        self.rows = 0
        if overwrite:
            self.progress.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        size = self._good_bytes() if path.exists() else 0
        self.empty = size == 0  # not even a head
        try:
            if not path.exists():  # first of all: an output without it would be nobody's
                self._note(0)
            self.file = open(path, "r+b" if path.exists() else "wb")  # noqa: SIM115
            self.file.truncate(size)
            self.file.seek(size)
        except OSError as error:
            raise UserError(f"--output {path}: can't be written ({error.strerror})") from error

    def _good_bytes(self) -> int:
        """What of an existing output is kept. Raises UserError where it is of other work, or nothing says of which."""
        try:
            state = json.loads(self.progress.read_text(encoding="utf-8"))
            before, rows, size = state["work"], int(state["rows"]), int(state["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"--output {self.path} exists, and it is no unfinished work; name another, or type --overwrite"
            ) from None
        if differing := [key for key in self.work if before.get(key) != self.work[key]]:
            raise UserError(
                f"--output {self.path} was begun with another {', '.join(differing)}; name another output, or type "
                "--overwrite"
            )
        if self.path.stat().st_size < size:
            raise UserError(f"--output {self.path} is shorter than {self.progress.name} says; type --overwrite")
        self.rows = rows
        return size

    def append(self, text: str, rows: int) -> None:
        """Lines of so many more rows: on the disk when this returns."""
        try:
            self.file.write(text.encode("utf-8", "backslashreplace"))  # half a surrogate pair, as JSON escapes it
            self.file.flush()
            os.fsync(self.file.fileno())
            self.rows += rows
            self._note(self.file.tell())
        except OSError as error:
            raise UserError(
                f"--output {self.path}: can't be written ({error.strerror}); make room, then type the same again"
            ) from error

    def _note(self, size: int) -> None:
        state = {"rows": self.rows, "bytes": size, "work": self.work}
        write_text(self.progress, json.dumps(state, indent=1) + "\n")

    def finish(self) -> None:
        """All rows are there."""
        self.close()
        self.progress.unlink(missing_ok=True)

    def close(self) -> None:
        self.file.close()


class Stdout:
    """The same lines to stdout; a terminal gets them without what would steer it."""

    rows, empty = 0, True

    def append(self, text: str, rows: int) -> None:
        if sys.stdout.isatty():
            text = "".join(f"{visible(line)}\n" for line in text.splitlines())
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass
