"""Classification learns on every architecture, and its metrics are those of all examples."""

import numpy as np
import pytest
import torch

from lit_tfm.data.sampling import Key
from lit_tfm.errors import UserError
from lit_tfm.optim.schedules import linear
from lit_tfm.tasks import confusion
from lit_tfm.tasks.classification import Classification
from lit_tfm.tasks.readout import LastTokenReadout, PooledReadout, label_losses

NAMES = ("yes", "no", "on")
ARCHITECTURES = ("encoder", "decoder", "encoder_decoder")
MARKS = np.array([50, 53, 56])  # what a label is known by


def rows(n, pair, several, seed=0):
    """Random texts in which marked tokens tell the labels; of a pair, the second text does."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        length = random.integers(4, 12)
        text = random.integers(60, 73, length)
        labels = random.integers(0, 2, 3) if several else np.eye(3, dtype=int)[random.integers(3)]
        marks = MARKS[labels == 1]
        text[random.permutation(length)[: len(marks)]] = marks
        first = random.choice(MARKS, 5) if pair else text  # the marks of the first text mean nothing
        made.append(
            {
                "tokens": first,
                "tokens_b": text if pair else None,
                "label": labels if several else int(labels.argmax()),
            }
        )
    return made


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
@pytest.mark.parametrize("pair", [False, True], ids=["one_text", "two_texts"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_learns_what_can_be_learnt(tools, architecture, pair, several):
    task = tools.task(Classification, architecture, NAMES, several, lr=4e-3)
    task.schedule = linear
    steps = 140 if architecture == "encoder_decoder" else 80  # writing an answer is learnt later than a linear layer
    trainer = tools.fit(task, rows(64, pair, several), steps=steps, batch_size=32)
    assert trainer.callback_metrics[task.monitor] == 1.0
    assert trainer.callback_metrics["val/subset_accuracy" if several else "val/mcc"] == 1.0


@pytest.mark.parametrize("pooling", ["max", "first", "attention"])
def test_poolings_learn(tools, pooling):
    task = tools.task(Classification, "encoder", NAMES, pooling=pooling)
    trainer = tools.fit(task, rows(32, False, False), steps=80, batch_size=32)
    assert trainer.callback_metrics["val/accuracy"] == 1.0


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_order_and_fillers_change_nothing(tools, keyed, architecture, several):
    task = tools.task(Classification, architecture, NAMES, several).eval()
    examples = keyed(rows(6, True, several), fillers=[5])
    together = task(task.collator()(examples))
    backwards = task(task.collator()(examples[::-1]))
    alone = [task(task.collator()([example])) for example in examples[:5]]
    torch.testing.assert_close(together.loss_sum, sum(output.loss_sum for output in alone))
    torch.testing.assert_close(together.loss_sum, backwards.loss_sum)
    assert together.count == 5
    scores = task.scores(task.collator()(examples))
    for i, example in enumerate(examples):
        torch.testing.assert_close(scores[i], task.scores(task.collator()([example]))[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_metrics_are_those_of_all_examples(tools, keyed, architecture):
    train = rows(23, False, False)
    task = tools.task(Classification, architecture, NAMES)
    trainer = tools.fit(task, train, steps=4, batch_size=5)
    task.eval()
    with torch.no_grad():
        scores = torch.cat([task.scores(task.collator()([example])) for example in keyed(train)])
    labels = torch.tensor([row["label"] for row in train])
    matrix = torch.zeros(3, 3, dtype=torch.long)
    for true, guess in zip(labels, scores.argmax(1), strict=True):
        matrix[true, guess] += 1
    assert torch.equal(task.confusion["val"], matrix)
    expected = {f"val/{name}": value for name, value in confusion.multiclass(matrix).items()}
    expected["val/loss"] = float(torch.nn.functional.cross_entropy(scores, labels))
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == pytest.approx(expected, abs=1e-5)


def test_metrics_with_several_labels(tools, keyed):
    train = rows(17, False, True)
    task = tools.task(Classification, "encoder", NAMES, True)
    trainer = tools.fit(task, train, steps=4, batch_size=5)
    task.eval()
    with torch.no_grad():
        batch = task.collator()(keyed(train))
        guesses, labels = task.scores(batch) > 0, batch["labels"] == 1
    metrics = trainer.callback_metrics
    assert metrics["val/subset_accuracy"] == pytest.approx(float((guesses == labels).all(1).double().mean()), abs=1e-6)
    hits = (guesses & labels).sum()
    assert metrics["val/micro_f1"] == pytest.approx(float(2 * hits / (guesses.sum() + labels.sum())), abs=1e-6)
    assert task.monitor == "val/macro_f1"
    assert task.confusion["val"].shape == (3, 2, 2)
    assert task.confusion["val"].sum() == 3 * 17


def test_a_pass_forgets_the_one_before(tools):
    task = tools.task(Classification, "encoder", NAMES)
    trainer = tools.fit(task, rows(10, False, False), steps=1, batch_size=5)
    for _ in range(2):
        trainer.validate(task, tools.loader(rows(10, False, False), task.collator(), 5, train=False), verbose=False)
        assert task.confusion["val"].sum() == 10


def test_token_dropout_is_for_training_only(tools, keyed):
    task = tools.task(Classification, "encoder", NAMES, token_dropout=0.5)
    batch = task.collator()(keyed(rows(8, False, False)))
    assert batch["dropped"].any()
    without = {key: value for key, value in batch.items() if key != "dropped"}
    task.eval()
    assert torch.equal(task(batch).loss_sum, task(without).loss_sum)
    blank = {**without, "input_ids": torch.where(batch["dropped"], tools.tokenizer.unk_id, batch["input_ids"])}
    changed = task(blank).loss_sum
    task.train()
    torch.testing.assert_close(task(batch).loss_sum, changed)


def test_losses_by_hand():
    scores, labels = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), torch.tensor([1, -100])
    likely = scores.log_softmax(1)
    assert label_losses(scores, labels).tolist() == pytest.approx([-float(likely[0, 1]), 0.0])
    smooth = -0.9 * likely[0, 1] - 0.1 * likely[0].mean()
    assert label_losses(scores, labels, 0.1)[0] == pytest.approx(float(smooth))
    several = torch.tensor([[1, 0, 1], [-100, -100, -100]])
    p = scores[0].sigmoid()
    assert label_losses(scores, several).tolist() == pytest.approx([-float((p[0] * (1 - p[1]) * p[2]).log()) / 3, 0.0])
    target = torch.tensor([0.95, 0.05, 0.95])
    smooth = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert label_losses(scores, several, 0.1)[0] == pytest.approx(float(smooth))


def test_probabilities_and_samples(tools, keyed):
    task = tools.task(Classification, "decoder", NAMES).eval()
    batch = task.collator()(keyed(rows(5, True, False)))
    torch.testing.assert_close(task.probabilities(batch).sum(1), torch.ones(5))
    pairs = task.samples(batch, limit=2)
    assert len(pairs) == 2
    for (text, verdict), label in zip(pairs, batch["labels"], strict=False):
        assert "[PAD]" not in text
        assert text.count("[SEP]") == 2
        assert verdict.endswith(f"true {NAMES[label]}")
    several = tools.task(Classification, "encoder", NAMES, True).eval()
    assert several.named(torch.tensor([1, 0, 1])) == "yes, on"
    assert several.named(torch.tensor([0, 0, 0])) == "none"


def test_readouts_follow_the_model(tools):
    assert isinstance(tools.task(Classification, "encoder", NAMES).readout, PooledReadout)
    assert isinstance(tools.task(Classification, "decoder", NAMES).readout, LastTokenReadout)


def test_token_types_reach_a_model_that_has_them(tools, keyed):
    task = tools.task(Classification, "encoder", NAMES, model={"n_segments": 2}).eval()
    batch = task.collator()(keyed(rows(4, True, False)))
    swapped = {**batch, "segment_ids": 1 - batch["segment_ids"]}
    assert not torch.equal(task.scores(batch), task.scores(swapped))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "needs data with labels"),
        ({"labels": ("only",)}, "the only label is 'only'"),
        ({"pooling": "men"}, r"task\.pooling=men; .*did you mean 'mean'"),
        ({"token_dropout": 1.0}, r"task\.token_dropout=1\.0"),
    ],
)
def test_mistakes_are_said_in_one_line(tools, options, message):
    with pytest.raises(UserError, match=message) as error:
        tools.task(Classification, "encoder", **{"labels": NAMES, **options})
    assert "\n" not in str(error.value)


def test_the_same_sample_twice_in_one_epoch_drops_the_same(tools):
    task = tools.task(Classification, "encoder", NAMES, token_dropout=0.3)
    [row] = rows(1, False, False)
    batch = task.collator()([{**row, "key": Key(2, 7)}, {**row, "key": Key(2, 7)}])
    assert torch.equal(batch["dropped"][0], batch["dropped"][1])
