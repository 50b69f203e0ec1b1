"""FSDP2: how the parameters of a task are spread over the ranks, and how they travel on a CPU."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(task: nn.Module, model: nn.Module, mesh: DeviceMesh) -> None:
    """Every block of `model` its own group, the rest of `task` (embedding, heads, norms) with the root."""
    blocks = [module for name, module in model.named_modules() if name.rpartition(".")[0].endswith("blocks")]
    on_cpu = mesh.device_type == "cpu"
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=not on_cpu)
    fully_shard(task, mesh=mesh)
    if on_cpu:
        # There are no streams: each gather would hold up its block, once forward and once back. So all begin with the
        # forward pass, in gloo's threads, and a block keeps its weights until its backward pass is through.
        task.register_forward_pre_hook(lambda *_: _gather(blocks))
        task.register_forward_hook(lambda *_: _release(blocks))
        for module in (*blocks, task):
            module.set_custom_reduce_scatter(ReduceScatterByExchange())


def _gather(blocks: list[FSDPModule]) -> None:
    for block in blocks:
        block.unshard(async_op=True)


def _release(blocks: list[FSDPModule]) -> None:
    """Where no backward pass follows: the next pass would use a copy left behind, whatever the weights are by then."""
    if not torch.is_grad_enabled():
        for block in blocks:
            block.reshard()


class ReduceScatterByExchange:
    """Each rank gets its part from all others and adds them up in the order of ranks.

    gloo's own reduces everything on every rank and throws away what belongs to others: twice the traffic. An object as
    `FSDPModule.set_custom_reduce_scatter` asks for.
    """

    def allocate(self, size, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False) -> None:
        if op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG) or async_op:
            raise NotImplementedError(f"reduce-scatter by {op}, async_op={async_op}")
        parts = torch.empty_like(input_tensor)
        dist.all_to_all_single(parts, input_tensor, group=group)
        parts = parts.view(group.size(), -1)  # (ranks, size of a part)
        (torch.sum if op == dist.ReduceOp.SUM else torch.mean)(parts, 0, out=output_tensor.view(-1))
