"""Paired differences: the interval is that of the examples, pairs are matched, what does not match is refused."""

import csv
import json
import math

import numpy as np
import pytest

from lit_tfm.errors import UserError
from lit_tfm.reports.paired import against, interval, read_examples
from lit_tfm.reports.tables import compare


def classified(folder, right, losses=None, name="test", labels=None, **about) -> None:
    """Predictions of which `right` (N,) are right."""
    (folder / "evaluation").mkdir(exist_ok=True)
    labels = ["pos" if i % 2 else "neg" for i in range(len(right))] if labels is None else labels
    losses = [0.1 if r else 2.0 for r in right] if losses is None else losses
    with open(folder / "evaluation" / f"{name}.examples.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "label", "predicted", "probability", "loss"])
        for i in reversed(range(len(right))):  # the order of lines does not matter
            writer.writerow([i, labels[i], labels[i] if right[i] else "other", 0.9, losses[i]])
    if about:
        about = {
            "data": {"hash": about.get("data")},
            "tokenizer": about.get("tokenizer"),
            "examples": {"unit": "block"},
        }
        (folder / "evaluation" / f"{name}.json").write_text(json.dumps(about))


def summed(folder, losses, targets, sizes, tokenizer="t") -> None:
    """Documents: nats, tokens and bytes of each."""
    (folder / "evaluation").mkdir(exist_ok=True)
    lines = [f"{i},{loss},{targets[i]},{sizes[i]}" for i, loss in enumerate(losses)]
    (folder / "evaluation/test.examples.csv").write_text("\n".join(["index,loss,targets,bytes", *lines]) + "\n")
    told = {"data": {"hash": "d"}, "tokenizer": tokenizer, "examples": {"unit": "document"}}
    (folder / "evaluation/test.json").write_text(json.dumps(told))


@pytest.fixture
def two(make, tmp_path):
    return make("a", {"optimizer.lr": 0.1}), make("b", {"optimizer.lr": 0.2}), [tmp_path / "outputs"]


def of(found, metric):
    return next(row for row in found.rows if row.metric == metric)


def test_differences_of_accuracy_and_loss(two) -> None:
    a, b, outputs = two
    draw = np.random.default_rng(0)
    hard = draw.random(400)
    classified(a, hard < 0.7)
    classified(b, hard < 0.8)
    found = against(compare(outputs), a)
    row = of(found, "accuracy")
    assert (found.evaluation, row.run, row.examples) == ("test", "b", 400)
    assert row.baseline == np.mean(hard < 0.7)
    assert row.value == np.mean(hard < 0.8)
    assert row.low < row.difference < row.high
    assert (row.low > 0, row.verdict) == (True, "better")
    assert of(found, "loss").verdict == "better"
    assert of(found, "loss").difference < 0
    back = of(against(compare(outputs), b), "accuracy")
    assert (back.run, back.difference, back.verdict) == ("a", -row.difference, "worse")
    assert (back.low, back.high) == pytest.approx((-row.high, -row.low), abs=0.01)


def test_the_interval_has_the_width_of_the_paired_error() -> None:
    """Against the normal interval of a mean of differences; an unpaired one would be several times wider."""
    draw = np.random.default_rng(1)
    common, ones = draw.normal(size=1000), np.ones(1000)
    a, b = 5 * common, 5 * common + draw.normal(0.1, 0.5, size=1000)
    low, high = interval((b, ones), (a, ones))
    error = (b - a).std() / math.sqrt(1000)
    assert low == pytest.approx((b - a).mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx((b - a).mean() + 1.96 * error, abs=0.2 * error)
    assert interval((b, ones), (a, ones)) == (low, high)


def test_the_same_run_twice_differs_by_nothing(two) -> None:
    a, b, outputs = two
    for folder in (a, b):
        classified(folder, [True, False] * 50)
    row = of(against(compare(outputs), a), "accuracy")
    assert (row.difference, row.low, row.high, row.verdict) == (0, 0, 0, "not clear")


def test_losses_are_means_over_targets_not_over_examples(two) -> None:
    a, b, outputs = two
    summed(a, [10.0, 300.0], [10, 100], [40, 500])
    summed(b, [20.0, 200.0], [10, 100], [40, 500])
    found = against(compare(outputs), a)
    assert of(found, "loss").baseline == pytest.approx(310 / 110)
    assert of(found, "loss").value == pytest.approx(220 / 110)
    assert of(found, "bits_per_byte").value == pytest.approx(220 / 540 / math.log(2))


def test_other_tokenizers_compare_by_bytes_only(two) -> None:
    a, b, outputs = two
    summed(a, [10.0, 300.0], [10, 100], [40, 500])
    summed(b, [20.0, 200.0], [8, 80], [40, 500], tokenizer="other")
    found = against(compare(outputs), a)
    assert [row.metric for row in found.rows] == ["bits_per_byte"]
    assert any("another tokenizer" in note for note in found.notes)


def test_seeds_are_averaged_example_by_example(make, tmp_path) -> None:
    a = make("a", {"optimizer.lr": 0.1})
    classified(a, [True, False, False, False])
    for seed, right in ((1, [1, 1, 0, 0]), (2, [1, 1, 1, 1])):
        classified(make(f"s{seed}", {"seed": seed}), right)
    row = of(against(compare([tmp_path / "outputs"]), a), "accuracy")
    assert (row.run, row.value, row.difference) == ("s1 +1 seed", 0.75, 0.5)


def test_what_has_not_been_evaluated_is_told_with_the_command(two) -> None:
    a, b, outputs = two
    classified(a, [True] * 4)
    found = against(compare(outputs), a)
    assert not found.rows
    assert found.notes == [f"no examples to compare yet; make them with: python -m lit_tfm.evaluate {b}"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": ["pos"] * 4}, "its examples are not those"),
        ({"data": "other"}, "evaluated on other data"),
    ],
)
def test_other_examples_are_not_compared(change, says, two) -> None:
    a, b, outputs = two
    classified(a, [True] * 4, data="one")
    classified(b, [True] * 4, **{"data": "one", **change})
    found = against(compare(outputs), a)
    assert not found.rows
    assert says in found.notes[0]


def test_a_subset_is_compared_and_told(two) -> None:
    a, b, outputs = two
    classified(a, [True] * 6)
    classified(b, [True] * 4)
    found = against(compare(outputs), a)
    assert of(found, "accuracy").examples == 4
    assert "over the 4 examples that both have" in found.notes[0]


@pytest.mark.parametrize(
    "content", ["", "index,label\n1,a\n", "index,loss,targets\n1,2\n", "index,loss,targets\nx,1,1\n"]
)
def test_a_broken_file_is_named_and_the_rest_compared(content, two, make) -> None:
    a, b, outputs = two
    classified(a, [True] * 4)
    classified(b, [True] * 4)
    broken = make("c", {"optimizer.lr": 0.3})
    (broken / "evaluation").mkdir()
    (broken / "evaluation/test.examples.csv").write_text(content)
    found = against(compare(outputs), a)
    assert {row.run for row in found.rows} == {"b"}
    assert "c/evaluation/test.examples.csv can't be read" in found.notes[0]


def test_a_baseline_is_one_setting(two, make) -> None:
    a, _, outputs = two
    with pytest.raises(UserError, match="holds 2 runs of several settings"):
        against(compare(outputs), outputs[0])
    with pytest.raises(UserError, match="no such folder, did you mean"):
        against(compare(outputs), f"{a}x")
    classified(a, [True])
    with pytest.raises(UserError, match=r"--evaluation tset: no run has .*, did you mean 'test'"):
        against(compare(outputs), a, "tset")


def test_seeds_may_be_the_baseline(make, tmp_path) -> None:
    for seed, right in ((1, [1, 1, 0, 0]), (2, [1, 1, 1, 1])):
        classified(make(f"base/s{seed}", {"seed": seed}), right)
    classified(make("other", {"optimizer.lr": 0.3}), [1, 1, 1, 1])
    row = of(against(compare([tmp_path / "outputs"]), tmp_path / "outputs/base"), "accuracy")
    assert (row.baseline, row.value) == (0.75, 1.0)


def test_what_evaluate_writes_is_read(tmp_path) -> None:
    path = tmp_path / "x.examples.csv"
    path.write_text("index,label,predicted,probability,loss\n1,a,a,0.5,0.7\n0,a,b,0.6,0.9\n")
    found = read_examples(path)
    assert found.sums["accuracy"][0].tolist() == [0, 1]
    assert found.sums["loss"][0].tolist() == [0.9, 0.7]
