"""On an accelerator a step is judged on the device and read one step later: the same run, and nobody waits."""

import math

import pytest
import torch
from lightning import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from lit_tfm import config
from lit_tfm.errors import UserError
from lit_tfm.train import train

TINY = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "trainer.precision=32", "trainer.accelerator=cpu"]
QUICK = ["data.block_size=32", "data.batch_size=4", "tokenizer.vocab_size=400", "data.val_limit=4", "budget=null"]
RUN = ["experiment=gpt_small", *TINY, *QUICK, "trainer.max_steps=8", "trainer.val_every=4", "trainer.log_every=5"]
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal")  # item(), bool() and float() are the first


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for an accelerator."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function).startswith(WAITS)
        return function(*args, **(kwargs or {}))


class Watch(Callback):
    """Lets the task read late (or at once), poisons steps, and keeps what a run left."""

    def __init__(self, lags, poisoned=(), counted=False):
        self.lags, self.poisoned, self.counted, self.reads = lags, set(poisoned), counted, {}

    def on_fit_start(self, trainer, task):
        task.lags = self.lags

        def poison(module, inputs, output):
            return output * math.nan if task.training and trainer.global_step in self.poisoned else output

        task.get_submodule("model.blocks.1.feed_forward").register_forward_hook(poison)

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if self.counted:
            self.mode = Reads()
            self.mode.__enter__()

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if self.counted:
            self.mode.__exit__(None, None, None)
            self.reads[trainer.global_step] = self.mode.count

    def on_train_end(self, trainer, task):
        self.weights = [p.detach().clone() for p in task.parameters()]
        self.state = trainer.optimizers[0].state_dict()["state"]
        self.progress = {k: v for k, v in task.progress.state().items() if k != "seconds"}


def start(cache, text_folder, folder, watch, *more):
    words = [*RUN, f"data.path={text_folder}", f"cache_dir={cache}", f"output_dir={folder}", *more]
    return train(config.compose(words), quiet=True, callbacks=[watch])


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "lion")]


@pytest.mark.parametrize("optimizer", ["muon", *SLOW])
def test_reading_late_changes_no_bit_of_a_run_with_bad_steps(session_cache, text_folder, tmp_path, optimizer) -> None:
    words = [f"optimizer={optimizer}", f"optimizer.{'adamw_' * (optimizer == 'muon')}weight_decay=0.1"]
    now, late = Watch(False, {0, 3, 4, 6}), Watch(True, {0, 3, 4, 6})
    for name, watch in {"now": now, "late": late}.items():
        result = start(session_cache, text_folder, tmp_path / name, watch, *words)
        assert result.summary["skipped_steps"] == 4
    for a, b in zip(now.weights, late.weights, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(now.state.values(), late.state.values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert now.progress == late.progress
    rows = [
        [line.split(",") for line in (tmp_path / name / "metrics.csv").read_text().splitlines()]
        for name in ("now", "late")
    ]
    kept = [[(r[0], r[3], r[4]) for r in part if "speed/" not in r[3]] for part in rows]
    assert sorted(kept[0]) == sorted(kept[1])


def test_a_step_that_logs_nothing_reads_nothing(session_cache, text_folder, tmp_path) -> None:
    late = Watch(True, counted=True)
    start(session_cache, text_folder, tmp_path / "late", late)
    # One number is looked at, by the loss of nn/vocabulary_loss.py, and only where it lies on a CPU.
    assert [late.reads[step] for step in (2, 3, 4, 6, 7, 8)] == [1] * 6
    assert late.reads[5] > 1  # the log reads: the test can see


def test_too_many_in_a_row_still_stop_the_run_and_name_the_step(session_cache, text_folder, tmp_path) -> None:
    with pytest.raises(UserError, match=r"at step 7, as in the 1 before.*the output of model\.blocks\.1\.feed_forward"):
        start(session_cache, text_folder, tmp_path / "run", Watch(True, {5, 6, 7}), "task.bad_steps=2")
