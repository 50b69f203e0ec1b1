"""What the first screen says of a run's end: every bound there is, in the unit that was asked for."""

import re

import pytest

from lit_tfm import config, screens
from lit_tfm.build import build
from lit_tfm.hardware import choose

RUN = ["experiment=bert_small", "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "data.block_size=32"]
RUN += ["data.batch_size=8", "tokenizer.vocab_size=300", "trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    ("overrides", "length", "estimated"),
    [
        (["budget=null", "trainer.max_steps=6"], r"6 steps \(.* epochs\)", "about"),
        (["budget=10m", "trainer.max_steps=6"], r"at most 10 minutes of training, or 6 steps \(.*\)", "about"),
        (["budget=auto", "trainer.max_epochs=null"], "5 minutes of training", "5 minutes: the budget"),
        (["budget=2e6 tokens", "trainer.max_epochs=null"], "2,000,000 tokens", "about"),
        (["budget=2e6 tokens"], r"at most 2,000,000 tokens, or [\d,]+ steps \(.* epochs\)", "about"),
        (["budget=1e13 flops", "trainer.max_epochs=null"], r"10 TFLOPs \([\d,]+ tokens\)", "about"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_end_of_a_run_is_told_in_the_unit_of_its_budget(
    session_cache, text_folder, overrides, length, estimated
) -> None:
    cfg = config.compose([*RUN, f"data.path={text_folder}", f"cache_dir={session_cache}", *overrides])
    parts = build(cfg, choose(cfg.trainer))
    told = dict(screens._lines(cfg, parts))
    assert re.fullmatch(length, told["length"]), told["length"]
    assert told["estimated"].startswith(estimated)
