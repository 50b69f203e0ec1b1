"""Metrics from a table of counts, against plain loops over examples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.tasks import confusion


def f1(true, predicted, label):
    """(precision, recall, F1) of one label by counting, or None where it neither occurs nor is predicted."""
    hits = sum(t == label and p == label for t, p in zip(true, predicted, strict=True))
    said, are = predicted.count(label), true.count(label)
    if not said and not are:
        return None
    precision, recall = hits / said if said else 0.0, hits / are if are else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def mean(rows, column):
    return sum(row[column] for row in rows) / len(rows)


def correlation(true, predicted, n_labels):
    """Gorodkin's R_K: the Pearson correlation of the one-hot tables."""
    x, y = (torch.nn.functional.one_hot(torch.tensor(v), n_labels).double() for v in (true, predicted))
    x, y = x - x.mean(0), y - y.mean(0)
    bottom = math.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / bottom) if bottom > 1e-12 else 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_multiclass(pairs):
    true, predicted = [t for t, _ in pairs], [p for _, p in pairs]
    matrix = torch.zeros(5, 5, dtype=torch.long)
    for t, p in pairs:
        matrix[t, p] += 1
    rows = [row for row in (f1(true, predicted, label) for label in range(5)) if row]
    assert confusion.multiclass(matrix) == pytest.approx(
        {
            "accuracy": sum(t == p for t, p in pairs) / len(pairs),
            "precision": mean(rows, 0),
            "recall": mean(rows, 1),
            "macro_f1": mean(rows, 2),
            "mcc": correlation(true, predicted, 5),
        },
        abs=1e-9,
    )


@given(
    st.lists(
        st.tuples(st.lists(st.booleans(), min_size=3, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3)),
        min_size=1,
        max_size=40,
    )
)
def test_multilabel(pairs):
    matrices = torch.zeros(3, 2, 2, dtype=torch.long)
    for true, predicted in pairs:
        for label in range(3):
            matrices[label, int(true[label]), int(predicted[label])] += 1
    each = [f1([t[label] for t, _ in pairs], [p[label] for _, p in pairs], True) for label in range(3)]
    rows = [row for row in each if row]
    flat = f1([x for t, _ in pairs for x in t], [x for _, p in pairs for x in p], True)
    assert confusion.multilabel(matrices) == pytest.approx(
        {
            "precision": mean(rows, 0) if rows else 0.0,
            "recall": mean(rows, 1) if rows else 0.0,
            "macro_f1": mean(rows, 2) if rows else 0.0,
            "micro_f1": flat[2] if flat else 0.0,
        },
        abs=1e-9,
    )


def test_known_values():
    # Binary: 40 true positives, 10 false negatives, 20 false positives, 30 true negatives.
    values = confusion.multiclass(torch.tensor([[30, 20], [10, 40]]))
    assert values["accuracy"] == 0.7
    assert values["mcc"] == pytest.approx((40 * 30 - 20 * 10) / math.sqrt(60 * 50 * 50 * 40))
    assert values["macro_f1"] == pytest.approx((2 * 40 / 110 + 2 * 30 / 90) / 2)
