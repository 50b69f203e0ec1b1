"""Error analysis of a classifier: where it is wrong, and how sure it is there.

Letters: N examples, L labels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lit_tfm.evaluation.classifier import confusion
from lit_tfm.evaluation.scoring import Labelled

BUCKETS = 5  # of about as many examples each, by their length


def most_confident(
    found: Labelled, names: tuple[str, ...], texts: Callable[[list[int]], dict[int, str]], limit: int
) -> list[dict[str, Any]]:
    """The wrong predictions the model was surest of, with their texts; of equally sure ones the earlier example."""
    wrong = np.flatnonzero(~found.right)
    worst = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:limit]
    said = texts(found.index[worst].tolist())
    labels, predicted = named(found.labels, names), named(found.predicted, names)
    return [
        {
            "index": int(found.index[i]),
            "label": labels[i],
            "predicted": predicted[i],
            "probability": float(found.confidence[i]),
            "loss": float(found.losses[i]),
            "text": said.get(int(found.index[i]), ""),
        }
        for i in worst
    ]


def named(labels: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """(N,) class numbers or (N, L) 0/1 -> names; several are joined by |."""
    if labels.ndim == 1:
        return [names[number] for number in labels.tolist()]
    return ["|".join(name for name, held in zip(names, row, strict=True) if held) for row in labels.tolist()]


def confused(found: Labelled, names: tuple[str, ...], limit: int = 10) -> list[dict[str, Any]]:
    """The pairs of a true and another, predicted label met most; of several labels, those missed or added most."""
    matrix = confusion(found)
    if found.labels.ndim == 2:
        tables = list(zip(names, matrix.tolist(), strict=True))  # rows: true no and yes, columns: said no and yes
        pairs = [(missed, missed + hit, name, "not said") for name, (_, (missed, hit)) in tables]
        pairs += [(added, kept + added, f"not {name}", "said") for name, ((kept, added), _) in tables]
    else:
        rows, columns = np.nonzero(matrix * (1 - np.eye(len(matrix), dtype=int)))
        pairs = [
            (int(matrix[i, j]), int(matrix[i].sum()), names[i], names[j])
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
    pairs = sorted((pair for pair in pairs if pair[0]), key=lambda pair: -pair[0])[:limit]
    return [
        {"label": label, "predicted": guess, "count": count, "share_of_label": count / total}
        for count, total, label, guess in pairs
    ]


def by_length(found: Labelled) -> list[dict[str, Any]]:
    """Buckets of about as many examples each: shortest and longest in tokens, share right, mean loss."""
    edges = np.unique(np.quantile(found.lengths, np.linspace(0, 1, BUCKETS + 1)[1:-1], method="lower"))
    bucket = np.searchsorted(edges, found.lengths, side="left")
    rows = []
    for number in np.unique(bucket):
        inside = bucket == number
        lengths = found.lengths[inside]
        rows.append(
            {
                "shortest": int(lengths.min()),
                "longest": int(lengths.max()),
                "examples": int(inside.sum()),
                "accuracy": float(found.right[inside].mean()),
                "loss": float(found.losses[inside].mean()),
            }
        )
    return rows
