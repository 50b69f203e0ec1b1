"""A classifier's metrics are those of other people's formulas, and weights mean repetition."""

import numpy as np
import pytest
import torch
from torchmetrics.functional import classification as theirs

from lit_tfm.evaluation import calibration, classifier
from lit_tfm.evaluation.scoring import Labelled
from lit_tfm.tasks import confusion

NAMES = ("a", "b", "c", "d")


def found(several: bool = False, n: int = 200, seed: int = 0) -> Labelled:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(n, 4)) * 2
    if several:
        labels = (random.random((n, 4)) < 0.4).astype(np.int64)
        likely = 1 / (1 + np.exp(-(scores + labels)))
    else:
        labels = random.integers(4, size=n)
        scores[np.arange(n), labels] += 1.5
        likely = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return Labelled(np.arange(n), labels, likely, random.random(n), random.integers(3, 40, size=n))


def test_metrics_of_one_label_are_those_of_torchmetrics() -> None:
    data = found()
    mine = classifier.measure(data)
    likely, labels = torch.from_numpy(data.probabilities), torch.from_numpy(data.labels)
    options = {"num_classes": 4}
    assert mine["accuracy"] == pytest.approx(
        float(theirs.multiclass_accuracy(likely, labels, average="micro", **options))
    )
    assert mine["macro_f1"] == pytest.approx(float(theirs.multiclass_f1_score(likely, labels, **options)), rel=1e-6)
    assert mine["precision"] == pytest.approx(float(theirs.multiclass_precision(likely, labels, **options)), rel=1e-6)
    assert mine["recall"] == pytest.approx(float(theirs.multiclass_recall(likely, labels, **options)), rel=1e-6)
    assert mine["mcc"] == pytest.approx(float(theirs.multiclass_matthews_corrcoef(likely, labels, **options)), rel=1e-6)
    error = theirs.multiclass_calibration_error(likely, labels, n_bins=calibration.BINS, norm="l1", **options)
    assert mine["ece"] == pytest.approx(float(error), rel=1e-5)
    assert mine["loss"] == pytest.approx(data.losses.mean())
    onehot = np.eye(4)[data.labels]
    assert mine["brier"] == pytest.approx(((data.probabilities - onehot) ** 2).sum(1).mean())
    matrix = theirs.multiclass_confusion_matrix(likely, labels, **options)
    assert classifier.confusion(data).tolist() == matrix.tolist()


def test_metrics_of_several_labels_are_those_of_torchmetrics() -> None:
    data = found(several=True)
    mine = classifier.measure(data)
    likely, labels = torch.from_numpy(data.probabilities), torch.from_numpy(data.labels)
    options = {"num_labels": 4}
    assert mine["macro_f1"] == pytest.approx(float(theirs.multilabel_f1_score(likely, labels, **options)), rel=1e-6)
    micro = theirs.multilabel_f1_score(likely, labels, average="micro", **options)
    assert mine["micro_f1"] == pytest.approx(float(micro), rel=1e-6)
    exact = theirs.multilabel_exact_match(likely, labels, **options)
    assert mine["subset_accuracy"] == pytest.approx(float(exact), rel=1e-6)
    assert mine["brier"] == pytest.approx(((data.probabilities - data.labels) ** 2).mean())
    sides = torch.stack([1 - likely, likely], -1).reshape(-1, 2)  # each yes or no is a decision between two
    error = theirs.multiclass_calibration_error(sides, labels.flatten(), num_classes=2, n_bins=calibration.BINS)
    assert mine["ece"] == pytest.approx(float(error), rel=1e-5)
    matrices = theirs.multilabel_confusion_matrix(likely, labels, **options)
    assert classifier.confusion(data).tolist() == matrices.tolist()


@pytest.mark.parametrize("several", [False, True])
def test_they_are_those_of_training(several) -> None:
    data = found(several, n=40)
    theirs_too = confusion.multilabel if several else confusion.multiclass
    trained = theirs_too(torch.from_numpy(classifier.confusion(data)))
    mine = classifier.measure(data)
    assert {name: mine[name] for name in trained} == pytest.approx(trained)


@pytest.mark.parametrize("several", [False, True])
def test_a_weight_counts_an_example_so_often(several) -> None:
    data, random = found(several, n=30), np.random.default_rng(1)
    weights = random.integers(0, 4, size=(3, 30))
    together = classifier.statistic(data)(weights.astype(float))
    for i, row in enumerate(weights):
        chosen = np.repeat(np.arange(30), row)
        parts = (data.index, data.labels, data.probabilities, data.losses, data.lengths)
        alone = classifier.measure(Labelled(*(part[chosen] for part in parts)))
        assert {name: value[i] for name, value in together.items()} == pytest.approx(alone)


def test_a_label_that_is_never_met_counts_nowhere() -> None:
    likely = np.array([[0.8, 0.2, 0.0], [0.3, 0.7, 0.0]])
    data = Labelled(np.arange(2), np.array([0, 1]), likely, np.zeros(2), np.ones(2))
    mine = classifier.measure(data)
    assert mine["macro_f1"] == mine["accuracy"] == mine["mcc"] == 1
    rows = classifier.by_class(data, NAMES[:3])
    assert rows[2] == {"label": "c", "precision": 0, "recall": 0, "f1": 0, "examples": 0}


def test_by_class() -> None:
    data = found()
    likely, labels = torch.from_numpy(data.probabilities), torch.from_numpy(data.labels)
    f1 = theirs.multiclass_f1_score(likely, labels, num_classes=4, average=None)
    rows = classifier.by_class(data, NAMES)
    assert [row["f1"] for row in rows] == pytest.approx(f1.tolist(), rel=1e-6)
    assert [row["examples"] for row in rows] == np.bincount(data.labels, minlength=4).tolist()


def test_reliability_tells_what_the_calibration_error_sums() -> None:
    data = found()
    bins = calibration.reliability(data.labels, data.probabilities)
    assert sum(row["count"] for row in bins) == len(data)
    error = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / len(data)
    assert classifier.measure(data)["ece"] == pytest.approx(error)
