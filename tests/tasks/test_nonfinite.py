"""A step that is not finite is left out and counted; too many in a row stop the run and say where it came from."""

import json
import math
import re

import pytest
import torch
from lightning import Callback

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.train import train

QUICK = ["data.block_size=32", "data.batch_size=4", "tokenizer.vocab_size=400", "data.val_limit=4", "budget=null"]
LM = ["experiment=gpt_small", *QUICK, "trainer.max_steps=8", "trainer.val_every=4", "trainer.log_every=1"]


class Poison(Callback):
    """Makes a layer's output NaN in the given optimizer steps (counted from 0)."""

    def __init__(self, steps, layer="model.blocks.1.feed_forward", gradient=False):
        self.steps, self.layer, self.gradient = set(steps), layer, gradient
        self.before, self.unchanged = None, []

    def on_fit_start(self, trainer, task):
        def forward(module, inputs, output):
            return output * math.nan if task.training and trainer.global_step in self.steps else output

        def backward(module, given, wanted):
            if trainer.global_step in self.steps:
                return tuple(None if g is None else g * math.inf for g in given)

        module = task.get_submodule(self.layer)
        module.register_full_backward_hook(backward) if self.gradient else module.register_forward_hook(forward)

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.before = [p.detach().clone() for p in task.parameters()]
        self.state = str(trainer.optimizers[0].state_dict())

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step - 1 in self.steps:
            same = all(torch.equal(a, b) for a, b in zip(self.before, task.parameters(), strict=True))
            moved = {**trainer.optimizers[0].state_dict()}
            self.unchanged.append(same and states(self.state) == states(str(moved)))


def states(text):
    """Of an optimizer's printed state, without the learning rate, which the schedule moves."""
    return re.sub(r"'lr': [^,]*,", "", text)


def start(run, text_folder, *more, callbacks, folder):
    cfg = config.compose([*TINY, *LM, f"data.path={text_folder}", f"cache_dir={run}", f"output_dir={folder}", *more])
    return train(cfg, quiet=True, callbacks=callbacks)


TINY = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "trainer.precision=32", "trainer.accelerator=cpu"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "lion", "adafactor"])
def test_a_bad_step_changes_neither_weights_nor_the_optimizer(session_cache, text_folder, tmp_path, optimizer) -> None:
    poison = Poison({2, 5})
    result = start(session_cache, text_folder, f"optimizer={optimizer}", callbacks=[poison], folder=tmp_path / "run")
    assert result.status == "finished"
    assert poison.unchanged == [True, True]
    assert result.summary["skipped_steps"] == 2
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    assert [(r[0], r[4]) for r in rows if r[3] == "train/skipped_steps"] == [("3", "1.0"), ("6", "2.0")]
    assert math.isfinite(result.metrics["val/loss"])


@pytest.mark.parametrize(
    ("gradient", "layer", "expected"),
    [
        (False, "model.blocks.1.feed_forward", r"the output of model\.blocks\.1\.feed_forward "),
        (True, "model.blocks.1", r"the gradient of model\.blocks\.0\.feed_forward"),
    ],
)
def test_too_many_in_a_row_stop_the_run_and_name_layer_and_samples(
    session_cache, text_folder, tmp_path, gradient, layer, expected
) -> None:
    poison = Poison({5, 6, 7}, layer, gradient)
    with pytest.raises(UserError) as refused:
        start(session_cache, text_folder, "task.bad_steps=3", callbacks=[poison], folder=tmp_path / "run")
    message = str(refused.value)
    assert "at step 8, as in the 2 before" in message
    assert re.search(expected, message), message
    assert re.search(r"rank 0, epoch 0, samples \d+, \d+, \d+, \d+\)", message), message
    assert "last good checkpoint is" in message
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_the_count_goes_on_after_a_resume(session_cache, text_folder, tmp_path) -> None:
    folder = tmp_path / "run"
    start(session_cache, text_folder, "trainer.max_steps=4", "task.bad_steps=2", callbacks=[Poison({3})], folder=folder)
    cfg = config.compose([f"resume={folder}", "trainer.max_steps=8"])
    with pytest.raises(UserError, match="at step 5, as in the 1 before"):
        train(cfg, quiet=True, callbacks=[Poison({4})])
