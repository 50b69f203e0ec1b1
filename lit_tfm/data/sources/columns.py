"""Which columns of a row are text and label, and what the labels are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lit_tfm.errors import UserError, nearest

Column = str | int
NUMBER = re.compile(r"-?[0-9]{1,18}")
MARKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


@dataclass(frozen=True)
class Columns:
    """`text` and `text_b` name a column (its position from 0 where there is no header) or several, joined by a blank.

    With `labels`, the class names in order, a whole number n in the label column is `labels[n - label_offset]`; names
    are taken as they are. Without, labels are called what the column says. `label_separator` splits several labels.
    Several label columns hold 0 or 1 each: those labels hold whose column says 1.
    """

    text: Column | Sequence[Column] = "text"
    text_b: Column | Sequence[Column] | None = None
    label: Column | Sequence[Column] | None = "label"
    labels: tuple[str, ...] | None = None
    label_offset: int = 0
    label_separator: str | None = None

    def __post_init__(self) -> None:
        for name in ("text", "text_b", "label"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | int):
                object.__setattr__(self, name, tuple(value))
        if self.labels is not None or isinstance(self.label, tuple):
            names = self.label if self.labels is None else self.labels
            object.__setattr__(self, "labels", tuple(str(name) for name in names))
        if isinstance(self.label, tuple) and len(self.label) != len(self.labels):
            raise UserError(
                f"data.label has {len(self.label)} columns, data.labels {len(self.labels)} names; give as many"
            )

    @property
    def positions(self) -> bool:
        """Whether columns are named by their position, so that no header is expected."""
        wanted = self.text if isinstance(self.text, tuple) else (self.text,)
        return all(isinstance(column, int) for column in wanted)

    def text_of(self, row: dict, where: str) -> str:
        return self._joined(self.text, row, where, "text")

    def example(self, row: dict, where: str) -> dict:
        """{text, text_b, label} of a row."""
        return {
            "text": self.text_of(row, where),
            "text_b": None if self.text_b is None else self._joined(self.text_b, row, where, "text_b"),
            "label": self._marked(row, where) if isinstance(self.label, tuple) else self._single(row, where),
        }

    def _joined(self, columns: Column | Sequence[Column], row: dict, where: str, option: str) -> str:
        if isinstance(columns, str | int):
            return _as_text(_cell(row, columns, where, option), where, columns)
        parts = [_as_text(_cell(row, column, where, option), where, column) for column in columns]
        return " ".join(part for part in parts if part)

    def _single(self, row: dict, where: str) -> str | list[str] | None:
        return None if self.label is None else self._label(_cell(row, self.label, where, "label"), where)

    def _marked(self, row: dict, where: str) -> list[str] | None:
        """Names of the label columns that say 1; None where one is hidden."""
        marks = [str(_cell(row, column, where, "label")).strip().lower() for column in self.label]
        if "-1" in marks:
            return None
        for column, mark in zip(self.label, marks, strict=True):
            if mark not in MARKS:
                raise UserError(
                    f"{where}: column {column!r} holds {mark!r}; of several label columns each holds 0 or 1"
                )
        return [name for name, mark in zip(self.labels, marks, strict=True) if MARKS[mark]]

    def _label(self, value: object, where: str) -> str | list[str] | None:
        # -1: how the hub hides the labels of a test split; not a number: how tables of numbers say that there is none
        if value is None or value == "" or value == -1 or value != value:
            return None
        if isinstance(value, str) and self.label_separator:
            value = [part.strip() for part in value.split(self.label_separator) if part.strip()]
        if isinstance(value, list):
            return [self._name(part, where) for part in value]
        return self._name(value, where)

    def _name(self, value: object, where: str) -> str:
        if not isinstance(value, str | int | float):
            raise UserError(f"{where}: a label is a {type(value).__name__}; give a name, a number or a list of names")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip()
        if self.labels is None or text in self.labels:
            return text
        known = ", ".join(self.labels)
        if not NUMBER.fullmatch(text):
            raise UserError(f"{where}: label '{text}' is not one of {known}{nearest(text, self.labels)}")
        number = int(text) - self.label_offset
        if not 0 <= number < len(self.labels):
            last = self.label_offset + len(self.labels) - 1
            raise UserError(
                f"{where}: label {text}, but the {len(self.labels)} names ({known}) stand for {self.label_offset} to "
                f"{last}; see data.labels and data.label_offset"
            )
        return self.labels[number]


def _cell(row: dict, column: Column, where: str, option: str) -> object:
    if column in row:
        return row[column]
    if isinstance(column, int) and 0 <= column < len(row):  # by position although there is a header
        return list(row.values())[column]
    names = list(row)
    if names and isinstance(names[0], int):
        given = f"there are positions 0 to {len(names) - 1}"
    elif any(" " in name or name.isdigit() for name in names):  # the first line looks like data
        given = (
            f"the first line reads {' | '.join(name[:30] for name in names)}; for no header, name columns by position"
        )
    else:
        given = f"there are {', '.join(names)}{nearest(str(column), names)}"
    raise UserError(f"{where}: no column {column!r}; {given}; type data.{option}=COLUMN")


def _as_text(value: object, where: str, column: Column) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    if isinstance(value, int | float):
        return str(value)
    raise UserError(f"{where}: column {column!r} holds a {type(value).__name__}, not text")
