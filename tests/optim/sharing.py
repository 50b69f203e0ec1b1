"""One of several ranks, for test_shares.py: python sharing.py RANK RANKS FOLDER. Says which matrices it worked on."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lit_tfm.optim.muon import muon
from lit_tfm.optim.shares import by_shares, on_this_machine

SHAPES = [(12, 4), (4, 12), (5, 4), (2, 3), (1, 7), (12, 4), (8, 8)]  # on three ranks: even, uneven, and none left


def shared(matrices, replicas):
    """Results, and the indices worked on here: the work keeps rows and columns apart."""
    seen = []

    def work(indices, given):
        seen.extend(indices)
        return [100 * index + x.cumsum(0).cumsum(1) for index, x in zip(indices, given, strict=True)]

    return by_shares(matrices, [matrix.numel() for matrix in matrices], work, replicas), seen


def trained(replicas):
    """Weights after three steps of Muon."""
    torch.manual_seed(0)
    named = [(f"blocks.{i}.weight", torch.nn.Parameter(torch.randn(shape))) for i, shape in enumerate(SHAPES)]
    optimizer = muon(named)
    optimizer.replicas, optimizer.parts = replicas, {"blocks.0.weight": (4, 8)}
    for _ in range(3):
        for _, p in named:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return [p.detach() for _, p in named]


if __name__ == "__main__":
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in SHAPES]
    wanted = [100 * index + x.cumsum(0).cumsum(1) for index, x in enumerate(matrices)]

    copies, of_copies = shared(matrices, dist.group.WORLD)
    torch.testing.assert_close(copies, wanted)

    machines = 3 if ranks == 9 else ranks
    near, of_machine = shared(matrices, on_this_machine(machines))
    torch.testing.assert_close(near, wanted)
    assert on_this_machine(1) is dist.group.WORLD

    mesh = init_device_mesh("cpu", (ranks,))
    shards, of_shards = shared([distribute_tensor(x, mesh, [Shard(0)]) for x in matrices], None)
    for one, other in zip(shards, wanted, strict=True):
        assert isinstance(one, DTensor)
        assert one.placements == (Shard(0),)
        torch.testing.assert_close(one.full_tensor(), other)

    for replicas, mixed in (
        (dist.group.WORLD, [matrices[0], matrices[1].bfloat16()]),
        (None, [distribute_tensor(x, mesh, [Shard(0)]) for x in (matrices[0], matrices[1].bfloat16())]),
    ):
        try:
            shared(mixed, replicas)
        except NotImplementedError:
            continue
        raise AssertionError("matrices of two dtypes were not refused")

    try:
        shared([distribute_tensor(x, mesh, [Shard(1)]) for x in matrices], None)
        refused = False
    except NotImplementedError:
        refused = True

    torch.testing.assert_close(trained(dist.group.WORLD), trained(None), rtol=1e-4, atol=1e-5)
    dist.barrier()
    print(json.dumps([of_copies, of_shards, of_machine, refused]), flush=True)
    os._exit(0)  # gloo's threads now and then abort a process that shuts down in order
