"""A comparison for other programs: markdown for a page, csv and json with every number whole."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from lit_tfm.reports.columns import Column


def markdown(found: Sequence[Column]) -> str:
    head = [column.whole for column in found]
    rule = ["---:" if column.number else "---" for column in found]
    rows = zip(*(column.cells for column in found), strict=True)
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in [head, rule, *rows])


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def chosen(records: Sequence[dict[str, Any]], keys: Sequence[str] | None) -> list[dict[str, Any]]:
    """Only these keys (None: all), and what tells which run it is and how many."""
    always = {"run", "path", "status", "n"}
    return [
        {key: value for key, value in record.items() if keys is None or key.removesuffix(" std") in {*keys, *always}}
        for record in records
    ]


def as_csv(records: Sequence[dict[str, Any]]) -> str:
    """An empty cell: not known, or null."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().rstrip("\n")


def as_json(records: Sequence[dict[str, Any]]) -> str:
    finite = [{key: _finite(value) for key, value in record.items()} for record in records]
    return json.dumps(finite, indent=1, ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    """Json has no NaN: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
