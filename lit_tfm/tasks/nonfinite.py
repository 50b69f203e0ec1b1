"""Steps whose loss or gradient is not finite: how a step is judged, and where a bad one comes from.

`origin` is called when a run is about to stop, so it may cost a step: the micro-batch is computed again, watched.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from lit_tfm.tasks.base import Task

SHOWN = 16  # sample numbers
WEIGHT = "the weight"


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient was NaN or infinite too often, or a weight is."""


class Verdict:
    """What an optimizer step came to: (loss, gradient's norm, targets), on their way from the device to the host."""

    def __init__(self, numbers: Tensor, step: int, batches: list[tuple[dict, int]]) -> None:
        self.numbers, self.step, self.batches = numbers, step, batches
        self.arrived = None
        if numbers.is_cuda:
            self.host = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self.host.copy_(numbers, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def bad(self) -> Tensor:
        """() 1.0 where loss or norm is not finite, else 0.0, on the device: nobody waits for it."""
        return (~self.numbers[:2].isfinite().all()).float()

    def read(self) -> list[float]:
        """Waits until the numbers are there; a step later they have long been."""
        if self.arrived is None:
            return self.numbers.tolist()
        self.arrived.synchronize()
        return self.host.tolist()


def origin(task: "Task", batches: list[tuple[dict, int]]) -> str:
    """One sentence: first bad layer, rank and samples, of the micro-batches (batch, its number) of a step.

    Collective: under FSDP ranks compute together, so all look through all of theirs.
    """
    found = [(layer, number) for batch, number in batches if (layer := first_bad_layer(task, batch, number))]
    told = None
    if found:
        layer, number = found[0]
        told = layer, f"it appears first in {layer} (rank {task.global_rank}, {samples(task, number)})"
    ranks = [told]
    if dist.is_initialized():
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, told)
    # A weight that is bad in the shard of one rank makes outputs bad in all.
    first = min(filter(None, ranks), key=lambda one: not one[0].startswith(WEIGHT), default=None)
    return first[1] if first else "computed again, all of it is finite"


def samples(task: "Task", micro_step: int) -> str:
    """The samples of a micro-step as the data module counts them."""
    sampler = getattr(task.trainer.train_dataloader, "batch_sampler", None)
    if not hasattr(sampler, "step"):
        return f"micro-step {micro_step}"
    step, part = divmod(micro_step, task.trainer.accumulate_grad_batches)
    keys = sampler.step(step)[part]
    shown = ", ".join(str(key.index) for key in keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
    return f"epoch {keys[0].epoch}, samples {shown}"


def first_bad_layer(task: "Task", batch: dict, micro_step: int) -> str | None:
    """Name of the first weight, layer output or gradient that is not finite; None where all are."""
    # Computed in any case: under FSDP all ranks have to, and the shards of another may all be finite.
    weight = next((name for name, parameter in task.named_parameters() if not finite(parameter)), None)
    outputs: list[str] = []
    called: list[str] = []
    hooks = [m.register_forward_hook(watch(name, outputs, called)) for name, m in task.named_modules() if name]
    try:
        task.zero_grad(set_to_none=True)
        task.seed_dropout(micro_step)
        with task.trainer.precision_plugin.train_step_context():
            output = task(batch)
        loss = output.loss_sum if output.training_loss_sum is None else output.training_loss_sum
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    if weight is not None:
        return f"{WEIGHT} {weight}"
    if outputs:
        return f"the output of {outputs[0]}"
    if not finite(loss):
        return "the loss itself"
    bad = {name for name, p in task.named_parameters() if p.grad is not None and not finite(p.grad)}
    task.zero_grad(set_to_none=True)
    order = {name: place for place, name in enumerate(called)}
    # Gradients flow from the last layer to the first.
    last = max(bad, key=lambda name: order.get(name.rpartition(".")[0], -1), default=None)
    return f"the gradient of {last}" if last else None


def watch(name: str, found: list[str], called: list[str]):
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        called.append(name)
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not found and not all(finite(tensor) for tensor in tensors):
            found.append(name)  # inner modules end before those around them

    return hook


def finite(tensor: Tensor) -> bool:
    local = tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()
    return bool(torch.isfinite(local).all())
