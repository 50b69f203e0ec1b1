"""Label texts: their scores are the log-likelihoods that a plain loop finds."""

import numpy as np
import pytest
import torch

from lit_tfm.data.tokenizers import Char
from lit_tfm.errors import UserError
from lit_tfm.tasks import label_text
from lit_tfm.tasks.classification import Classification
from lit_tfm.tasks.label_text import LabelTextReadout, candidates

NAMES = ("yes", "no", "on")


@torch.no_grad()
def brute_force(task, row, prefix, answer):
    """log p(answer | text, prefix) with one pass a token, no batch, no padding.

    Only characters of the labels (of yes and no, where there are several labels) and the end can be written.
    """
    tokenizer, model = task.facts.tokenizer, task.model
    letters = " yesno" if task.facts.multi_label else "yesno"
    words = sorted({tokenizer.sep_id, *tokenizer.encode(letters).tolist()})
    text = torch.tensor([[*row["tokens"], tokenizer.sep_id, *row["tokens_b"], tokenizer.sep_id]])
    memory = model.encode(text)
    written, total = [tokenizer.pad_id, *prefix], 0.0
    for token in [*answer, tokenizer.sep_id]:
        hidden = model.decode(torch.tensor([written]), memory)[0, -1]
        weight = model.embedding.weight[words] if model.config.tie_embeddings else task.readout.head.weight
        logits = 15 * torch.tanh(weight @ hidden / 15)
        total += float(logits.log_softmax(0)[words.index(token)])
        written.append(int(token))
    return total


def rows(tools, several):
    made = []
    for i, n in enumerate((9, 4, 13)):
        label = np.array([i % 2, 1, 0]) if several else i
        made.append({**tools.block(n, seed=i), "tokens_b": tools.block(3 + i, seed=9)["tokens"], "label": label})
    return made


@pytest.mark.parametrize(("at_once", "tied"), [(1, False), (2, True), (16, False)])
def test_scores_of_labels(tools, keyed, monkeypatch, at_once, tied):
    monkeypatch.setattr(label_text, "AT_ONCE", at_once)
    task = tools.task(Classification, "encoder_decoder", NAMES, model={"tie_embeddings": tied}).eval()
    examples = rows(tools, False)
    with torch.no_grad():
        scores = task.scores(task.collator()(keyed(examples)))
        expected = [[brute_force(task, row, [], tools.tokenizer.encode(name)) for name in NAMES] for row in examples]
    assert scores.tolist() == pytest.approx(np.array(expected), abs=1e-4)


def test_scores_of_several_labels_compare_yes_with_no(tools, keyed):
    task = tools.task(Classification, "encoder_decoder", NAMES, True).eval()
    examples, encode = rows(tools, True), tools.tokenizer.encode
    with torch.no_grad():
        scores = task.scores(task.collator()(keyed(examples)))
        expected = [
            [
                brute_force(task, r, encode(n), encode(" yes")) - brute_force(task, r, encode(n), encode(" no"))
                for n in NAMES
            ]
            for r in examples
        ]
    assert scores.tolist() == pytest.approx(np.array(expected), abs=1e-4)


def test_training_loss_is_that_of_the_right_text(tools, keyed):
    task = tools.task(Classification, "encoder_decoder", NAMES).train()
    examples = rows(tools, False)
    output = task(task.collator()(keyed(examples, fillers=[1])))
    expected = [-brute_force(task, row, [], tools.tokenizer.encode(NAMES[row["label"]])) for row in examples]
    assert float(output.loss_sum.detach()) == pytest.approx(expected[0] + expected[2], abs=1e-4)
    assert output.count == 2


def test_training_loss_of_several_labels_is_the_mean_over_them(tools, keyed):
    task = tools.task(Classification, "encoder_decoder", NAMES, True).train()
    examples, encode = rows(tools, True), tools.tokenizer.encode
    output = task(task.collator()(keyed(examples, fillers=[1])))
    expected = 0.0
    for row in (examples[0], examples[2]):
        for name, true in zip(NAMES, row["label"], strict=True):
            expected -= brute_force(task, row, encode(name), encode(" yes" if true else " no")) / 3
    assert float(output.loss_sum.detach()) == pytest.approx(expected, abs=1e-4)


def test_other_texts_for_the_labels(tools):
    task = tools.task(Classification, "encoder_decoder", NAMES, label_texts=["a", "b", "c"])
    readout = task.readout
    assert readout.words[readout.targets[:, 0]].tolist() == [int(tools.tokenizer.encode(x)[0]) for x in "abc"]


def test_texts_that_can_not_be_told_apart():
    tokenizer = Char().train(["abc"])
    candidates(tokenizer, ["a", "ab"], False)
    with pytest.raises(UserError, match=r"'xy' and 'yx'.*task\.label_texts"):
        candidates(tokenizer, ["a", "xy", "yx"], False)  # two unknown characters each
    with pytest.raises(UserError, match="same tokens"):
        candidates(Char().train(["xyz"]), ["xx", "yy", "x"], True) and candidates(tokenizer, ["a", "zz", "yy"], True)


def test_the_number_of_texts_is_checked(tools):
    with pytest.raises(UserError, match=r"2 texts, the data 3 labels \(yes, no, on\)"):
        LabelTextReadout(tools.model("encoder_decoder"), tools.facts(NAMES), ["a", "b"])
