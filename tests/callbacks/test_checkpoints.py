"""Which checkpoints are kept, and that each is whole or absent."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.callbacks.checkpoint_files import AtomicCheckpointIO
from lit_tfm.callbacks.checkpoints import Checkpoints, between_steps

QUICK = ["data.block_size=32", "data.batch_size=4", "tokenizer.vocab_size=400", "data.val_limit=4", "budget=null"]
MLM = ["experiment=bert_small", *QUICK, "trainer.max_steps=8", "trainer.val_every=2"]


@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=12),
    keep=st.integers(1, 4),
    mode=st.sampled_from(["min", "max"]),
)
def test_the_ranking_holds_the_best_in_order(values, keep, mode) -> None:
    callback = Checkpoints("unused", "val/loss", mode, best=keep)
    for step, value in enumerate(values):
        callback._place(value, step)
    expected = sorted(values, reverse=mode == "max")[:keep]
    assert [entry["value"] for entry in callback.ranking] == expected


def test_a_nan_is_never_the_best() -> None:
    callback = Checkpoints("unused", "val/loss", "min")
    assert callback._place(math.nan, 1) is None
    assert callback._place(3.0, 2) == 0


def test_best_files_are_the_best_validations(run, text_folder) -> None:
    folder = run(*MLM, f"data.path={text_folder}", "++callbacks.checkpoints.best=3").folder
    files = [folder / "checkpoints" / name for name in ("best.ckpt", "best-2.ckpt", "best-3.ckpt")]
    saved = [torch.load(file, weights_only=True) for file in files]
    rankings = [checkpoint["callbacks"]["Checkpoints"]["ranking"] for checkpoint in saved]
    final = max(rankings, key=lambda ranking: ranking[-1]["step"] + len(ranking) * 100)
    assert {checkpoint["global_step"] for checkpoint in saved} == {entry["step"] for entry in final} | set()
    assert not (folder / "checkpoints" / "best-4.ckpt").exists()


def test_a_save_that_fails_leaves_the_older_checkpoint(tmp_path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    class Broken:
        def __reduce__(self):
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        AtomicCheckpointIO().save_checkpoint({"step": Broken()}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_counters_follow_from_the_step_alone() -> None:
    loop = {"epoch_loop.state_dict": {"_batches_that_stepped": 99}, "epoch_loop.batch_progress": {}, "other": 1}
    assert between_steps(loop, 5, 2) == between_steps(between_steps(loop, 7, 2), 5, 2)
    assert between_steps(loop, 5, 2)["epoch_loop.batch_progress"]["current"]["ready"] == 10


def test_early_stopping_ends_the_run(run, text_folder) -> None:
    stuck = [
        "optimizer=adamw",
        "optimizer.lr=0.0",
        "callbacks=[default,early_stopping]",
        "callbacks.early_stopping.patience=2",
    ]
    result = run(*MLM, f"data.path={text_folder}", *stuck, "trainer.max_steps=100")
    assert result.summary["steps"] == 6  # the first validation, and two without an improvement
