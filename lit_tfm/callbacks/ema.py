"""Exponential moving average of the weights: what is validated and saved, while training goes on with its own.

Lightning 2.6.6 brings EMAWeightAveraging. It is not used here because it copies the whole task unsharded under FSDP2,
and because it exchanges the two sets of weights in place: a run stopped during a validation saves each as the other.
"""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate


class EMA(Callback):
    """average <- decay * average + (1 - decay) * weights after every optimizer step.

    `decay` is reached gradually, min(decay, (1 + step) / (10 + step)), so that the start of a short run is forgotten.
    A checkpoint's `state_dict` is the average; `training_weights` beside it is what a resumed run trains on. After the
    fit the module holds the average. Parameters only: buffers are not averaged.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self._parameters: dict[str, Tensor] = {}  # by every name they have; sharded ones as their shard
        self._average: dict[str, Tensor] | None = None  # this rank's part
        self._training: dict[str, Tensor] | None = None  # this rank's part, kept while the module holds the average
        self._step = 0  # of the last update

    # ---- training ---------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(pl_module)
        if self._training is not None:  # a second fit
            self._give_back(pl_module)
        if self._average is None:
            self._average = _clone(self._parameters)
        for name, parameter in self._parameters.items():  # a resumed average was loaded before the move to the device
            self._average[name] = self._average[name].to(_local(parameter).device)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if trainer.global_step == self._step:  # a micro-batch of an accumulated step
            return
        self._step = step = trainer.global_step
        once = {id(parameter): name for name, parameter in self._parameters.items()}.values()  # tied weights once
        averages = [self._average[name] for name in once]
        weights = [_local(self._parameters[name]) for name in once]
        torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lend(pl_module)

    # ---- validation -------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lend(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._give_back(pl_module)

    def _attach(self, pl_module: LightningModule) -> None:
        _reshard(pl_module)
        self._parameters = dict(pl_module.named_parameters(remove_duplicate=False))

    def _lend(self, pl_module: LightningModule) -> None:
        """Put the average into the module. The training weights are safe before the first of them is overwritten."""
        if self._average is None or self._training is not None:
            return
        _reshard(pl_module)
        self._training = _clone(self._parameters)
        _write(self._parameters, self._average)

    def _give_back(self, pl_module: LightningModule) -> None:
        if self._training is None:
            return
        _reshard(pl_module)
        _write(self._parameters, self._training)
        self._training = None

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Right at any moment, also in the middle of `_lend`: neither set is read from the module while it is lent."""
        if self._average is None:
            return
        state = checkpoint["state_dict"]  # sharded, or whole on rank 0 and empty elsewhere
        keep_shards = any(isinstance(value, DTensor) for value in state.values())
        training = {}
        for name, parameter in self._parameters.items():
            raw = parameter.detach() if self._training is None else _like(self._training[name], parameter)
            average = _like(self._average[name], parameter)
            if not keep_shards:
                raw, average = _whole(raw), _whole(average)
            if keep_shards or trainer.is_global_zero or not isinstance(parameter, DTensor):
                training[name] = raw
            if name in state:
                state[name] = average
        checkpoint["training_weights"] = training

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called when the module has just been filled with `state_dict`, the average, whole or sharded."""
        training = checkpoint.get("training_weights")
        if training is None:  # a run without EMA: the average starts from its weights
            return
        self._attach(pl_module)
        self._average, self._training = _clone(self._parameters), None
        _write(self._parameters, {name: _part(training[name], p) for name, p in self._parameters.items()})


def _reshard(pl_module: LightningModule) -> None:
    """Trap: FSDP2 keeps the root gathered after a forward, and the next one would use that copy, not what we write."""
    for module in pl_module.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _local(x: Tensor) -> Tensor:
    return x.detach().to_local() if isinstance(x, DTensor) else x.detach()


def _clone(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's part of each; names of one tied parameter share one copy."""
    copies = {id(p): _local(p).clone() for p in parameters.values()}
    return {name: copies[id(p)] for name, p in parameters.items()}


@torch.no_grad()
def _write(parameters: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        _local(parameter).copy_(values[name])


def _like(part: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part as a tensor sharded the way the parameter is."""
    if not isinstance(parameter, DTensor):
        return part
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def _whole(x: Tensor) -> Tensor:
    """Gathered on every rank (collective) and brought to the CPU where it was sharded."""
    return x.detach().full_tensor().cpu() if isinstance(x, DTensor) else x.detach()


def _part(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank holds whole, or is a part of already: no communication."""
    if isinstance(whole, DTensor):
        return _local(whole)
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    replicated = DTensor.from_local(whole.to(parameter.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=parameter.placements).to_local()
