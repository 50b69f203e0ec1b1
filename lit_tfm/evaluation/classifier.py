"""Metrics of a classifier from its probabilities, each with weights, so that all resamples are measured at once.

Averages over labels ("macro") are taken over those that occur or are predicted; what is 0 / 0 counts as 0, as in
tasks/confusion.py.

Letters: N examples, L labels, R sets of weights.
"""

from typing import Any

import numpy as np

from lit_tfm.evaluation import calibration
from lit_tfm.evaluation.bootstrap import Statistic
from lit_tfm.evaluation.scoring import Labelled


def statistic(found: Labelled) -> Statistic:
    """Weights (R, N) -> every metric, (R,) each."""
    labels, probabilities = found.labels, found.probabilities
    counts = several(found) if labels.ndim == 2 else single(found)
    plain = {"loss": found.losses, "brier": calibration.brier(labels, probabilities)}
    gaps = calibration.gaps(labels, probabilities)  # (N, K)

    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(1)
        means = {name: weights @ values / total for name, values in plain.items()}
        return {**counts(weights), **means, "ece": np.abs(weights @ gaps).sum(1) / total}

    return metrics


def measure(found: Labelled) -> dict[str, float]:
    """Every metric of the examples as they are."""
    return {name: float(value[0]) for name, value in statistic(found)(np.ones((1, len(found)))).items()}


def single(found: Labelled) -> Statistic:
    n_labels = found.probabilities.shape[1]
    cell = found.labels * n_labels + found.predicted  # (N,)
    order = np.argsort(cell, kind="stable")
    cells, starts = np.unique(cell[order], return_index=True)

    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        matrix = np.zeros((len(weights), n_labels * n_labels))
        matrix[:, cells] = np.add.reduceat(weights[:, order], starts, axis=1)
        matrix = matrix.reshape(-1, n_labels, n_labels)  # (R, L, L) rows true, columns predicted
        hits, actual, predicted = np.einsum("rll->rl", matrix), matrix.sum(2), matrix.sum(1)
        n = actual.sum(1)
        covariance = hits.sum(1) * n - (actual * predicted).sum(1)
        spread = np.sqrt((n**2 - (actual**2).sum(1)) * (n**2 - (predicted**2).sum(1)))
        return {"accuracy": hits.sum(1) / n, **macro(hits, actual, predicted), "mcc": ratio(covariance, spread)}

    return metrics


def several(found: Labelled) -> Statistic:
    true, guess = found.labels.astype(float), found.predicted.astype(float)  # (N, L)
    right = found.right.astype(float)

    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits, actual, predicted = weights @ (true * guess), weights @ true, weights @ guess  # (R, L)
        micro = ratio(2 * hits.sum(1), (actual + predicted).sum(1))
        exact = weights @ right / weights.sum(1)
        return {**macro(hits, actual, predicted), "micro_f1": micro, "subset_accuracy": exact}

    return metrics


def macro(hits: np.ndarray, actual: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Macro F1, precision and recall, (R,) each, from counts (R, L)."""
    occurs = (actual + predicted) > 0
    n = np.maximum(occurs.sum(1), 1)
    parts = {"macro_f1": (2 * hits, actual + predicted), "precision": (hits, predicted), "recall": (hits, actual)}
    return {name: np.where(occurs, ratio(top, bottom), 0).sum(1) / n for name, (top, bottom) in parts.items()}


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros_like(bottom, dtype=float), where=bottom > 0)


def confusion(found: Labelled) -> np.ndarray:
    """(L, L) counts, rows true and columns predicted; of several labels (L, 2, 2), rows whether it was true."""
    n_labels = found.probabilities.shape[1]
    if found.labels.ndim == 1:
        cell = found.labels * n_labels + found.predicted
        return np.bincount(cell, minlength=n_labels**2).reshape(n_labels, n_labels)
    cell = 2 * found.labels + found.predicted  # (N, L)
    return np.stack([np.bincount(column, minlength=4).reshape(2, 2) for column in cell.T])


def by_class(found: Labelled, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and number of examples of each label."""
    matrix = confusion(found)
    if found.labels.ndim == 2:
        hits, actual, predicted = matrix[:, 1, 1], matrix[:, 1].sum(1), matrix[:, :, 1].sum(1)
    else:
        hits, actual, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    precision, recall, f1 = ratio(hits, predicted), ratio(hits, actual), ratio(2 * hits, actual + predicted)
    return [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "examples": int(n)}
        for name, p, r, f, n in zip(names, precision, recall, f1, actual, strict=True)
    ]
