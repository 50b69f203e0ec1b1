"""Labels of texts, with their probabilities: what a classifier predicts.

Letters: B texts, L labels.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from hydra.utils import get_class

from lit_tfm.data.sampling import Key
from lit_tfm.evaluation.scoring import check_finite
from lit_tfm.evaluation.subject import Subject
from lit_tfm.prediction.predictor import Prediction, Predictor
from lit_tfm.prediction.rows import Row


class Labels(Predictor):
    """The likeliest label, or all labels more likely than not; with `top` > 1 also the likeliest ones in order."""

    def __init__(self, subject: Subject, top: int) -> None:
        names = subject.task.facts.labels
        super().__init__(subject, min(top, len(names)))
        self.names, self.several = names, subject.task.facts.multi_label
        self.collator = self.task.collator()
        self.collator.max_length = min(self.collator.max_length, trained_length(subject))
        ranks = range(1, self.top + 1) if self.top > 1 else ()
        self.columns = [
            "predicted",
            "probability",
            *(f"{kind}_{k}" for k in ranks for kind in ("label", "probability")),
        ]

    def encode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        pair = rows[0].text_b is not None
        first = self.tokenizer.encode_batch([row.text for row in rows])
        second = self.tokenizer.encode_batch([row.text_b for row in rows]) if pair else [None] * len(rows)
        room = self.collator.max_length - self.collator.special_tokens(pair=pair)
        lengths = np.array([len(a) + (len(b) if pair else 0) for a, b in zip(first, second, strict=True)])
        self.note(f"cut to the {self.collator.max_length} tokens the run reads", int((lengths > room).sum()))
        kept = np.minimum(lengths, room) + self.collator.special_tokens(pair=pair)
        none = np.zeros(len(self.names), dtype=np.int64) if self.several else 0
        return [
            {"tokens": a, "tokens_b": b, "label": none, "key": Key(0, i), "length": int(length)}
            for i, (a, b, length) in enumerate(zip(first, second, kept, strict=True))
        ]

    def answer(self, items: Sequence[dict[str, Any]]) -> list[Prediction]:
        scores = self.task.scores(self.subject.moved(self.collator(list(items))))
        check_finite(scores)
        likely = (scores.double().sigmoid() if self.several else scores.double().softmax(1)).cpu().numpy()  # (B, L)
        ranked = np.argsort(-likely, axis=1, kind="stable")
        return [self._prediction(row, order[: self.top]) for row, order in zip(likely, ranked, strict=True)]

    def _prediction(self, likely: np.ndarray, best: np.ndarray) -> Prediction:
        top = [(self.names[i], round(float(likely[i]), 6)) for i in best]
        ranked = [{"label": name, "probability": p} for name, p in top] if self.top > 1 else []
        if self.several:
            held = [(name, round(float(p), 6)) for name, p in zip(self.names, likely, strict=True) if p > 0.5]
            said, sure = [name for name, _ in held], [p for _, p in held]
            cells = ["|".join(said), "|".join(f"{p:.6f}" for p in sure)]
        else:
            said, sure = self.names[best[0]], round(float(likely[best[0]]), 6)
            cells = [said, f"{sure:.6f}"]
        cells += [cell for name, p in top for cell in (name, f"{p:.6f}")] if ranked else []
        return Prediction(cells, {"predicted": said, "probability": sure, **({"top": ranked} if ranked else {})})


def trained_length(subject: Subject) -> int:
    """Tokens of an example in training, at most: where texts are cut there, they are cut here."""
    data = subject.cfg.data
    default = inspect.signature(get_class(data._target_)).parameters["max_length"].default
    return int(data.get("max_length", default))
