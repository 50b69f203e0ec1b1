"""What is summed over each example is what the task sums over all of them."""

import numpy as np
import pytest
import torch

from lit_tfm.errors import UserError
from lit_tfm.evaluation import scoring
from lit_tfm.evaluation.splits import open_split
from lit_tfm.evaluation.subject import open_subject


def quiet(done: int) -> None:
    pass


@pytest.mark.parametrize("kind", ["masked", "causal", "spans"])
def test_rows_of_a_batch_are_examples_alone(trained_runs, kind) -> None:
    subject = open_subject(trained_runs(kind), overrides=("data.val_limit=3",))
    split = open_split(subject, "validation")
    found = scoring.blocks(subject, split, quiet)
    assert len(found) == 3
    for places, batch in scoring.batches(subject, split, one_by_one=True):
        with torch.no_grad():
            alone = scoring.of_one(subject.task(batch))
        (place,) = np.flatnonzero(found.index == places[0])
        for name, (top, bottom) in alone.items():
            assert found.sums[name][0][place] == pytest.approx(float(top), rel=1e-4, abs=1e-4)
            assert found.sums[name][1][place] == float(bottom)


def test_a_task_that_is_not_known_is_measured_one_by_one(trained_runs, monkeypatch) -> None:
    """Any task works that keeps the contract: here a masked model whose kind is hidden."""
    subject = open_subject(trained_runs("masked"), overrides=("data.val_limit=4",))
    split = open_split(subject, "validation")
    known = scoring.blocks(subject, split, quiet)
    monkeypatch.setattr(scoring, "LanguageTask", type("Other", (), {}))
    unknown = scoring.blocks(subject, split, quiet)
    assert unknown.means() == pytest.approx(known.means(), rel=1e-5)
    assert unknown.metrics(unknown.means()) == pytest.approx(known.metrics(known.means()), rel=1e-5)


def test_weights_that_overflowed_are_told(trained_runs) -> None:
    subject = open_subject(trained_runs("encoder"))
    split = open_split(subject, "validation")
    with torch.no_grad():
        subject.task.readout.head.linear.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        scoring.classify(subject, split, quiet)


def test_order_is_that_of_the_split(trained_runs) -> None:
    subject = open_subject(trained_runs("encoder"))
    split = open_split(subject, "validation")
    found = scoring.classify(subject, split, quiet)
    assert found.index.tolist() == list(range(24))
    assert found.labels.tolist() == split.data.classes["validation"].tolist()
    assert found.lengths.tolist() == split.data.dataset("validation").lengths.tolist()
    assert np.allclose(found.losses, -np.log(found.probabilities[np.arange(24), found.labels]), atol=1e-5)
