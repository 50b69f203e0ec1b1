"""One of several ranks, for test_sharding.py: python exchanging.py RANK RANKS FOLDER."""

import os
import sys

import torch
import torch.distributed as dist

from lit_tfm.tasks.sharding import ReduceScatterByExchange

if __name__ == "__main__":
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    comm, group = ReduceScatterByExchange(), dist.group.WORLD
    for dtype in (torch.float32, torch.bfloat16):
        given = torch.arange(5 * ranks, dtype=dtype) * (rank + 1)
        for op, factor in ((dist.ReduceOp.SUM, 1), (dist.ReduceOp.AVG, 1 / ranks)):
            got = comm.allocate((5,), dtype=dtype, device=torch.device("cpu"))
            comm(got, given, group, op)
            whole = torch.arange(5 * ranks) * sum(range(1, ranks + 1)) * factor
            torch.testing.assert_close(got, whole[5 * rank :][:5].to(dtype))
    dist.barrier()
    print("equal", flush=True)
    os._exit(0)  # gloo's threads now and then abort a process that shuts down in order
