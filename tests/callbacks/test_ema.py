import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lit_tfm.callbacks.ema import EMA

DECAY = 0.6


class Tied(LightningModule):
    """A tied weight, a buffer and momentum; data in a fixed order, four batches an epoch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.seen_in_validation = []
        self.trained_from = []

    def training_step(self, batch, batch_idx):
        self.trained_from.append(self.first.weight.detach().clone())
        return (self.last(self.first(batch).tanh() * self.scale) - batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.seen_in_validation.append(self.first.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def data():
    return DataLoader(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), batch_size=4)


def fit(folder, callbacks, epochs=2, resume=None, validate=False, accumulate=1):
    model = Tied()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        limit_val_batches=1 if validate else 0,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data(), data(), ckpt_path=resume)
    return model, trainer


def every_epoch(folder):
    return ModelCheckpoint(folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_is_the_average_of_the_weights_after_each_step(tmp_path):
    plain, _ = fit(tmp_path, [])
    weights = [*plain.trained_from, plain.first.weight.detach()]
    average = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        decay = min(DECAY, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    model, _ = fit(tmp_path, [EMA(DECAY)])
    torch.testing.assert_close(model.first.weight.detach(), average)
    assert model.last.weight is model.first.weight


def test_validates_the_average_and_trains_on_as_without(tmp_path):
    plain, _ = fit(tmp_path, [])
    model, _ = fit(tmp_path, [EMA(DECAY)], validate=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.trained_from, model.trained_from, strict=True))
    assert not torch.equal(model.seen_in_validation[0], model.trained_from[4])
    assert torch.equal(model.seen_in_validation[-1], model.first.weight)


def test_counts_optimizer_steps_not_micro_batches(tmp_path):
    plain, _ = fit(tmp_path, [], accumulate=4, epochs=1)
    model, _ = fit(tmp_path, [EMA(DECAY)], accumulate=4, epochs=1)
    decay = 2 / 11
    expected = decay * plain.trained_from[0] + (1 - decay) * plain.first.weight
    torch.testing.assert_close(model.first.weight, expected)


def test_checkpoint_holds_the_average_as_plain_values(tmp_path):
    model, _ = fit(tmp_path, [EMA(DECAY), every_epoch(tmp_path)], validate=True)
    last = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert equal(last["state_dict"], model.state_dict())
    assert last["state_dict"]["first.weight"].data_ptr() == last["state_dict"]["last.weight"].data_ptr()
    plain, _ = fit(tmp_path, [])
    assert torch.equal(last["training_weights"]["first.weight"], plain.first.weight)


def test_resumes_bit_identically(tmp_path):
    whole, _ = fit(tmp_path, [EMA(DECAY), every_epoch(tmp_path / "whole")], epochs=4, validate=True)
    fit(tmp_path, [EMA(DECAY), every_epoch(tmp_path / "half")], epochs=2, validate=True)
    again, _ = fit(tmp_path, [EMA(DECAY)], epochs=4, validate=True, resume=tmp_path / "half" / "epoch=1.ckpt")
    assert len(again.trained_from) == 8
    assert all(torch.equal(a, b) for a, b in zip(again.trained_from, whole.trained_from[8:], strict=True))
    assert equal(again.state_dict(), whole.state_dict())


class StopIn(Callback):
    """Stops like a Ctrl-C at a moment, and saves like OnExceptionCheckpoint."""

    def __init__(self, moment, path):
        self.moment, self.path, self.seen = moment, path, 0

    def strike(self, moment):
        if moment == self.moment:
            self.seen += 1
            if self.seen == 2:
                raise RuntimeError("stopped")

    def on_validation_batch_end(self, *args):
        self.strike("validation")

    def on_train_epoch_end(self, *args):
        self.strike("epoch end")

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("moment", ["validation", "epoch end", "exchange"])
def test_a_stop_in_the_middle_keeps_both_sets_of_weights(moment, tmp_path, monkeypatch):
    fit(tmp_path, [EMA(DECAY), every_epoch(tmp_path)], validate=True)
    stop = StopIn(moment, tmp_path / "stopped.ckpt")
    if moment == "exchange":
        import lit_tfm.callbacks.ema as module

        write = module._write

        def half(parameters, values):
            write(dict(list(parameters.items())[:1]), values)
            stop.strike("exchange")
            write(parameters, values)

        monkeypatch.setattr(module, "_write", half)
        stop.seen = -1  # the third exchange: into the second validation
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, [EMA(DECAY), stop], validate=True)
    expected = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    found = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    assert equal(found["state_dict"], expected["state_dict"])
    assert equal(found["training_weights"], expected["training_weights"])


def test_saved_after_the_end_still_resumes_training_weights(tmp_path):
    _, trainer = fit(tmp_path, [EMA(DECAY), every_epoch(tmp_path)])
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    expected = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    found = torch.load(tmp_path / "after.ckpt", weights_only=True)
    for part in ("state_dict", "training_weights"):
        assert equal(found[part], expected[part])
    trainer.validate(trainer.lightning_module, data(), verbose=False)
    assert equal(trainer.lightning_module.state_dict(), expected["state_dict"])


def test_starts_from_the_weights_of_a_checkpoint_without_average(tmp_path):
    fit(tmp_path, [every_epoch(tmp_path)], epochs=1)
    plain, _ = fit(tmp_path, [], epochs=2)
    model, _ = fit(tmp_path, [EMA(DECAY)], epochs=2, resume=tmp_path / "epoch=0.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(model.trained_from, plain.trained_from[4:], strict=True))
    assert not torch.equal(model.first.weight, plain.first.weight)


def two_ranks(*arguments):
    """torchrun without its elastic agent: Lightning reads RANK and WORLD_SIZE when they are given."""
    script = Path(__file__).with_name("ema_sharded.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        **{"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"},
        **{"GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"},
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=300)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:  # when one fails, the other waits for it
            rank.kill()


@pytest.mark.slow
def test_sharded_equals_single_and_resumes_in_either(tmp_path):
    spec = importlib.util.spec_from_file_location("ema_sharded", Path(__file__).with_name("ema_sharded.py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    single, _ = script.fit(tmp_path, "single", 2)
    two_ranks(tmp_path, "sharded", 2)
    assert torch.load(tmp_path / "sharded.validated") == pytest.approx(single.validated, abs=1e-6)

    script.fit(tmp_path, "longer", 3)
    two_ranks(tmp_path, "single-then-sharded", 3, tmp_path / "single.ckpt")
    script.fit(tmp_path, "sharded-then-single", 3, tmp_path / "sharded.ckpt")
    expected = torch.load(tmp_path / "longer.ckpt", weights_only=True)
    for name in ("single-then-sharded", "sharded-then-single"):
        found = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        for part in ("state_dict", "training_weights"):
            torch.testing.assert_close(found[part], dict(expected[part]), atol=1e-6, rtol=0, msg=f"{name} {part}")
