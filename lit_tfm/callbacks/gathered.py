"""Looking at a model in the middle of a run, sharded or not, without a trace in the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from lightning import Trainer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lit_tfm.tasks.base import Task

T = TypeVar("T")


@contextmanager
def looking(trainer: Trainer, task: Task) -> Iterator[None]:
    """Costs no budget, records no gradients, computes in the run's precision, compiles nothing for its odd shapes."""
    compiled = task.model.config.compile
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with task.progress.paused(), torch.no_grad(), trainer.precision_plugin.forward_context(), eager:
        yield


def gathered(task: Task, look: Callable[[], T]) -> T:
    """`look()` with the root's parameters (embedding, norms, head) whole. Under FSDP2 every rank has to call it.

    Blocks gather their own parameters when they are called; only the root's hook hangs on the task.
    """
    if not isinstance(task, FSDPModule):
        return look()
    task._look = lambda: look()
    try:
        register_fsdp_forward_method(task, "_look")
        return task._look()
    finally:
        del task._look


def whole(tensor: Tensor) -> Tensor:
    """A copy of a parameter, in full on every rank. Collective under FSDP2.

    Trap: a gathered parameter is a plain tensor, and FSDP2 frees its storage later; numpy on a CPU would share that
    storage, and what is shared can't be freed.
    """
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
