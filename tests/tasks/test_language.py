"""Perplexities, and the vocabulary loss with and without smoothed labels."""

import math

import pytest
import torch

from lit_tfm.data.facts import SplitStats
from lit_tfm.tasks.causal_lm import CausalLM
from lit_tfm.tasks.language import perplexities


def split(**numbers):
    return SplitStats(**{"documents": 1, "wasted_tokens": 0, "examples": 1, **numbers})


def test_perplexities():
    # 200 tokens for 50 words of 400 bytes: a word has 4 tokens, a byte half a token.
    values = perplexities(math.log(8), split(tokens=200, words=50, bytes=400))
    assert values == pytest.approx({"perplexity": 8.0, "word_perplexity": 8.0**4, "bits_per_byte": 1.5})


def test_perplexities_compare_across_tokenizers():
    """The same total likelihood, cut into other tokens, is the same a word and a byte."""
    total = 1000.0
    few, many = split(tokens=250, words=100, bytes=600), split(tokens=600, words=100, bytes=600)
    a, b = perplexities(total / 250, few), perplexities(total / 600, many)
    assert a["perplexity"] != pytest.approx(b["perplexity"])
    assert a["word_perplexity"] == pytest.approx(b["word_perplexity"]) == pytest.approx(math.exp(total / 100))
    assert a["bits_per_byte"] == pytest.approx(b["bits_per_byte"]) == pytest.approx(total / math.log(2) / 600)


def test_what_is_unknown_or_too_large_is_not_made_up():
    assert set(perplexities(1.0, split(tokens=10, words=0, bytes=0))) == {"perplexity"}
    assert perplexities(1000.0, split(tokens=10, words=1, bytes=1))["word_perplexity"] == math.inf


def test_smoothing_is_for_training_only(tools, keyed):
    task = tools.task(CausalLM, "decoder", label_smoothing=0.2)
    batch = task.collator()(keyed([tools.block(20), tools.block(13, seed=1)]))
    trained, measured = task.train()(batch), task.eval()(batch)
    torch.testing.assert_close(trained.loss_sum, measured.loss_sum)
    assert measured.training_loss_sum is None
    logits = task.head(task.model.hidden(batch["input_ids"])).log_softmax(-1)
    counted = batch["labels"] != -100
    uniform = -logits.mean(-1)[counted].sum()
    torch.testing.assert_close(trained.training_loss_sum, 0.8 * trained.loss_sum + 0.2 * uniform)


@pytest.mark.parametrize(("compile", "asked"), [(False, False), (True, True), ("reduce-overhead", True)])
def test_a_compiled_model_has_a_compiled_loss(tools, compile, asked):
    assert tools.task(CausalLM, "decoder", model={"compile": compile}).head.compiled is asked
