"""Untrained tasks that have something to say, and questions for them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from lit_tfm.data.facts import DataFacts
from lit_tfm.data.tokenizers import Char, Tokenizer
from lit_tfm.models.decoder import Decoder
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.schedules import constant
from lit_tfm.tasks.causal_lm import CausalLM
from lit_tfm.tasks.span_corruption import SpanCorruption

KINDS = {"decoder": (CausalLM, Decoder), "encoder_decoder": (SpanCorruption, EncoderDecoder)}


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    return Char(sentinels=5).train(["abcdefghijklmnopqrstuvwxyz .,\n"])


@pytest.fixture(scope="session")
def make(letters) -> Callable:
    """`make("decoder", positions="alibi")`: random weights, large enough that some tokens are much likelier."""

    def build(kind: str = "decoder", seed: int = 0, tokenizer: Tokenizer = letters, **options):
        torch.manual_seed(seed)
        task, model = KINDS[kind]
        options = {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_length": 40, "zero_init": False, **options}
        model = model(vocab_size=tokenizer.vocab_size, **options)
        facts = DataFacts(tokenizer=tokenizer, splits={})
        made = task(model=model, facts=facts, optimizer=partial(adamw), schedule=constant).eval()
        with torch.no_grad():
            for parameter in made.head.parameters():
                parameter.mul_(3)
        return made

    return build
