"""Every token hidden once, alone: what a plain loop finds."""

import numpy as np
import pytest
import torch

from lit_tfm.data.sampling import Key
from lit_tfm.errors import UserError
from lit_tfm.evaluate import evaluate
from lit_tfm.evaluation import pseudo
from lit_tfm.evaluation.splits import open_split
from lit_tfm.evaluation.subject import open_subject


@torch.no_grad()
def plain_loop(task, tokens: np.ndarray, documents: np.ndarray | None) -> list[float]:
    tokenizer, losses = task.facts.tokenizer, []
    marks = {tokenizer.pad_id, tokenizer.sep_id, tokenizer.cls_id, tokenizer.mask_id}
    for place, token in enumerate(tokens.tolist()):
        if token in marks:
            continue
        own = np.ones(len(tokens), bool) if documents is None else documents == documents[place]
        ids = torch.tensor(tokens[own])[None]  # the document's part of the block, by itself
        at = int(own[:place].sum())
        ids[0, at] = tokenizer.mask_id
        losses.append(float(-task.head(task.model.hidden(ids)[0, at]).log_softmax(-1)[token]))
    return losses


def test_losses_are_those_of_a_plain_loop(trained_runs, monkeypatch) -> None:
    monkeypatch.setattr(pseudo, "TOKENS_AT_ONCE", 100)  # several passes a block
    subject = open_subject(trained_runs("masked"), overrides=("data.val_limit=3",))
    split = open_split(subject, "validation")
    found = pseudo.score(subject, split, lambda done: None)
    assert len(found) == 3
    for i, place in enumerate(found.index.tolist()):
        example = split.data.dataset("validation")[Key(0, place)]
        losses = plain_loop(subject.task, example["tokens"], example["document_ids"])
        assert found.sums["loss"][0][i] == pytest.approx(sum(losses), rel=1e-5)
        assert found.sums["loss"][1][i] == len(losses)


def test_the_verb_names_them_and_refuses_other_tasks(learnt) -> None:
    run = learnt("masked")
    report = evaluate([str(run), "--one-by-one", "data.test_limit=2", "--resamples", "10"])
    assert {"one_by_one_pseudo_perplexity", "pseudo_perplexity", "masked_accuracy"} <= report["metrics"].keys()
    assert report["examples"]["count"] == 2
    with pytest.raises(UserError, match="--one-by-one is for masked"):
        evaluate([str(learnt("encoder")), "--one-by-one"])
