"""Metrics of classification, all from one table of counts: exact whatever the batches and ranks were.

Averages are taken over the labels that occur or are predicted at all ("macro"); what is 0 / 0 counts as 0.

Letters: L labels.
"""

import torch
from torch import Tensor


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    return torch.where(bottom > 0, top / bottom.clamp(min=1e-300), 0.0)


def _macro(hits: Tensor, predicted: Tensor, actual: Tensor) -> dict[str, float]:
    """Macro precision, recall and F1 from counts (L,) of each label."""
    occurs = (predicted + actual) > 0
    n = occurs.sum().clamp(min=1)
    f1 = _ratio(2 * hits, predicted + actual)
    precision, recall = _ratio(hits, predicted), _ratio(hits, actual)
    values = {"macro_f1": f1, "precision": precision, "recall": recall}
    return {name: float(value[occurs].sum() / n) for name, value in values.items()}


def multiclass(matrix: Tensor) -> dict[str, float]:
    """Counts (L, L), rows the true labels, columns the predicted ones.

    `mcc` is Matthews' correlation for L classes (Gorodkin 2004): 1 perfect, 0 chance; a frequent class does not flatter
    it.
    """
    matrix = matrix.double()
    hits, actual, predicted, n = matrix.diagonal(), matrix.sum(1), matrix.sum(0), matrix.sum()
    covariance = hits.sum() * n - actual @ predicted
    spread = ((n**2 - actual @ actual) * (n**2 - predicted @ predicted)).sqrt()
    return {
        "accuracy": float(_ratio(hits.sum(), n)),
        **_macro(hits, predicted, actual),
        "mcc": float(_ratio(covariance, spread)),
    }


def multilabel(matrices: Tensor) -> dict[str, float]:
    """Counts (L, 2, 2): for each label, rows whether it was true, columns whether it was predicted."""
    matrices = matrices.double()
    hits = matrices[:, 1, 1]
    actual, predicted = matrices[:, 1].sum(1), matrices[:, :, 1].sum(1)
    micro = _ratio(2 * hits.sum(), (actual + predicted).sum())
    return {**_macro(hits, predicted, actual), "micro_f1": float(micro)}
