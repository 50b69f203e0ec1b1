"""FSDP2's strategy with checkpoints of two kinds: one file that rank 0 gathers, or a folder of the ranks' shards."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from lit_tfm.callbacks import sharded_files
from lit_tfm.callbacks.checkpoint_files import partial, save_weights, take_place
from lit_tfm.callbacks.replacing import is_sharded


class Sharding(ModelParallelStrategy):
    """Lightning's own shards are neither atomic nor checksummed, and hold pickles; these are and do not.

    Either kind is loaded by this strategy, whatever number of ranks wrote it; in one process and under DDP the
    CheckpointIO reads both.
    """

    def __init__(self, ranks: int) -> None:
        # FSDPStrategy refuses CPUs; left to itself, ModelParallelStrategy would split tensors, not data.
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def in_shards(self) -> bool:
        return self._save_distributed_checkpoint

    @in_shards.setter
    def in_shards(self, wanted: bool) -> None:
        self._save_distributed_checkpoint = wanted

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath, storage_options=None) -> None:
        path = Path(self.broadcast(filepath))
        if not self.in_shards:
            Strategy.save_checkpoint(self, checkpoint, path, storage_options)
            return
        with partial(path) as temporary:
            sharded_files.write(temporary, checkpoint, self.model)
            # None goes on, or ends, before the checkpoint has its name.
            sharded_files.together(lambda: self._finish(temporary, path, checkpoint["global_step"]))

    def _finish(self, temporary: Path, path: Path, step: int) -> None:
        if self.global_rank == 0:
            take_place(temporary, path)
            if self.checkpoint_io.weights:
                save_weights(path, sharded_files.read(path, only="state_dict")["state_dict"], step)

    def load_checkpoint(self, checkpoint_path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not is_sharded(path):
            return super().load_checkpoint(path, weights_only)
        saved = sharded_files.rest(path)
        tensors = self._templates(saved)
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))
        whole = {k: sharded_files.put_in(v, tensors) for k, v in saved.items() if k in sharded_files.SHARDED}
        set_model_state_dict(self.model, whole["state_dict"])
        for optimizer, state in zip(self.optimizers, whole["optimizer_states"], strict=False):
            set_optimizer_state_dict(self.model, optimizer, state)
        return {**saved, **whole}

    def _templates(self, saved: dict[str, Any]) -> dict[str, Tensor]:
        """This rank's parts, to be filled: name -> tensor, of what the checkpoint has."""
        weights = get_model_state_dict(self.model)
        state = {"state_dict": weights}
        if "training_weights" in saved:
            state["training_weights"] = {name: torch.zeros_like(weights[name]) for name in saved["training_weights"]}
        if self.optimizers:
            state["optimizer_states"] = [get_optimizer_state_dict(self.model, each) for each in self.optimizers]
        tensors: dict[str, Tensor] = {}
        for group, value in state.items():
            sharded_files.take_out(value, group, tensors, sharded_files.aliases(self.model))
        return tensors
