"""Causal language modelling: labels are the next tokens, every token is a target once."""

import numpy as np
import torch

from lit_tfm.data.sampling import Key
from lit_tfm.generation.decode import decode
from lit_tfm.tasks.causal_lm import CausalLM, ShiftCollator

IGNORED = -100


def test_labels_are_the_inputs_moved_left(tools, keyed):
    rows = [tools.block(n, seed=n) for n in (9, 5, 9)]
    batch = ShiftCollator(tools.tokenizer)(keyed(rows, fillers=[2]))
    for i, row in enumerate(rows[:2]):
        n = len(row["tokens"]) - 1
        assert batch["input_ids"][i, :n].tolist() == row["tokens"][:-1].tolist()
        assert batch["labels"][i, :n].tolist() == row["tokens"][1:].tolist()
        assert (batch["labels"][i, n:] == IGNORED).all()
    assert (batch["labels"][2] == IGNORED).all()
    assert batch["n_tokens"] == 8 + 4
    assert ShiftCollator.extra_tokens == 1


def test_padding_and_fillers_change_nothing(tools, keyed):
    task = tools.task(CausalLM, "decoder").eval()
    documents = np.repeat([0, 1], [10, 8]).astype(np.int32)
    short = tools.block(18, documents=documents)
    long = tools.block(50, documents=np.zeros(50, np.int32))
    alone = task(task.collator()(keyed([short])))
    padded = task(task.collator()(keyed([short, long], fillers=[1])))
    torch.testing.assert_close(padded.loss_sum, alone.loss_sum)
    assert padded.count == alone.count == 17


def test_documents_do_not_see_each_other(tools, keyed):
    task = tools.task(CausalLM, "decoder", model={"positions": "none"}).eval()
    joined = tools.block(21, documents=np.repeat([0, 1], [10, 11]).astype(np.int32))
    second = {"tokens": joined["tokens"][10:], "document_ids": np.zeros(11, np.int32)}
    first = {"tokens": joined["tokens"][:11], "document_ids": np.zeros(11, np.int32)}
    whole, *parts = (task(task.collator()(keyed([row]))).loss_sum for row in (joined, first, second))
    torch.testing.assert_close(whole, sum(parts))


def test_learns_a_text_and_goes_on_with_it(tools):
    text = np.tile(np.arange(50, 57), 6)
    rows = [{"tokens": text[i : i + 25], "document_ids": None} for i in range(7)]
    task = tools.task(CausalLM, "decoder", lr=5e-3)
    trainer = tools.fit(task, rows, steps=60, batch_size=7)
    assert trainer.callback_metrics["val/accuracy"] > 0.95
    task.eval()
    batch = task.collator()([{**rows[2], "key": Key(0, 2)}])
    [(asked, said)] = task.samples(batch, decode)
    assert asked + said == tools.tokenizer.decode(rows[2]["tokens"][:24])
