"""Error analysis on examples made by hand."""

import numpy as np

from lit_tfm.evaluation import mistakes
from lit_tfm.evaluation.scoring import Labelled

NAMES = ("bad", "good", "plain")


def one_label() -> Labelled:
    likely = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.0, 0.2, 0.8]])
    labels = np.array([0, 0, 2, 2, 2])
    return Labelled(np.array([3, 5, 8, 9, 11]), labels, likely, np.arange(5.0), np.array([4, 5, 6, 20, 30]))


def several_labels() -> Labelled:
    likely = np.array([[0.9, 0.1, 0.6], [0.2, 0.9, 0.1]])
    return Labelled(np.arange(2), np.array([[1, 0, 1], [0, 0, 1]]), likely, np.ones(2), np.array([4, 5]))


def test_the_most_confident_mistakes_come_first_with_their_texts() -> None:
    found = mistakes.most_confident(one_label(), NAMES, lambda wanted: {i: f"text {i}" for i in wanted}, 2)
    assert [(row["index"], row["label"], row["predicted"], row["text"]) for row in found] == [
        (9, "plain", "good", "text 9"),
        (5, "bad", "good", "text 5"),
    ]


def test_confused_pairs_are_counted() -> None:
    found = mistakes.confused(one_label(), NAMES)
    assert {(row["label"], row["predicted"]): row["count"] for row in found} == {
        ("bad", "good"): 1,
        ("plain", "bad"): 1,
        ("plain", "good"): 1,
    }
    assert {row["share_of_label"] for row in found if row["label"] == "plain"} == {1 / 3}


def test_several_labels_are_missed_or_added() -> None:
    found = mistakes.confused(several_labels(), NAMES)
    assert {(row["label"], row["predicted"]): row["count"] for row in found} == {
        ("plain", "not said"): 1,
        ("not good", "said"): 1,
    }
    assert mistakes.named(several_labels().labels, NAMES) == ["bad|plain", "plain"]
    row = mistakes.most_confident(several_labels(), NAMES, lambda wanted: {}, 5)[0]
    assert row["predicted"] == "good"
    assert row["probability"] == np.float64(0.8 * 0.9 * 0.9)


def test_buckets_hold_every_example_once() -> None:
    rows = mistakes.by_length(one_label())
    assert sum(row["examples"] for row in rows) == 5
    assert [(row["shortest"], row["longest"]) for row in rows] == [(4, 4), (5, 5), (6, 6), (20, 20), (30, 30)]
    assert [row["accuracy"] for row in rows] == [1, 0, 0, 0, 1]
    same = Labelled(*(part[:4] for part in (one_label().index, one_label().labels, one_label().probabilities)),
                    np.ones(4), np.full(4, 7))  # fmt: skip
    assert [row["examples"] for row in mistakes.by_length(same)] == [4]
