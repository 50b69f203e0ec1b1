"""Texts -> predictions, in batches of similar length: what the kinds of predictors share.

A prediction is plain values: `cells` for a table's columns, `json` for a line of jsonl.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from lit_tfm.data.bucketing import cut
from lit_tfm.evaluation.subject import Subject
from lit_tfm.prediction.rows import Row

TOKENS_AT_ONCE = 8192  # of a batch, padding included


@dataclass(frozen=True)
class Prediction:
    cells: list[str]
    json: dict[str, Any]


class Predictor(ABC):
    """`top`: so many answers, likeliest first. `noted` counts what a person should know, by a sentence about it."""

    columns: list[str]

    def __init__(self, subject: Subject, top: int) -> None:
        self.subject, self.task, self.tokenizer = subject, subject.task, subject.task.facts.tokenizer
        self.top = top
        self.noted: dict[str, int] = {}

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What each row becomes, with its number of `tokens` as `length`."""

    @abstractmethod
    def answer(self, items: Sequence[dict[str, Any]]) -> list[Prediction]:
        """Predictions of one batch."""

    @torch.inference_mode()
    def predict(self, rows: Sequence[Row]) -> list[Prediction]:
        """Predictions of the rows, in their order. Which rows share a batch is a function of the rows alone."""
        items = self.encode(rows)
        lengths = np.array([item["length"] for item in items], dtype=np.int64)
        order = np.argsort(lengths, kind="stable")
        borders = cut(lengths[order], TOKENS_AT_ONCE, None)
        found: list[Prediction | None] = [None] * len(items)
        for first, last in pairwise(borders):
            batch = order[first:last]
            with self.subject.autocast():
                answers = self.answer([items[i] for i in batch])
            for i, prediction in zip(batch, answers, strict=True):
                found[i] = prediction
        return found

    def note(self, sentence: str, count: int = 1) -> None:
        if count:
            self.noted[sentence] = self.noted.get(sentence, 0) + count
