"""One of two gloo processes that train a tiny model under FSDP2; started by test_sharded.py.

    python sharded_training.py RANK FOLDER

For every optimizer NAME it reads FOLDER/NAME-single.pt (weights and optimizer state a single process reached), goes on
from there, and writes FOLDER/NAME-sharded.pt: the weights, and the optimizer state as Lightning's ModelParallelStrategy
puts it into one file.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType, fully_shard

from lit_tfm.optim.adafactor import adafactor
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.lion import lion
from lit_tfm.optim.muon import muon

MAKERS = {
    "adamw": lambda named: adamw(named, lr=0.01),
    "adafactor": lambda named: adafactor(named, lr=0.01, weight_decay=0.1),
    "lion": lambda named: lion(named, lr=0.001),
    "muon": lambda named: muon(named, lr=0.02, adamw_lr=0.01, weight_decay=0.1, adamw_weight_decay=0.1),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)  # 18 and 25 rows on two ranks: even and uneven shards
        self.up = nn.Linear(6, 25)
        self.down = nn.Linear(25, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + self.down((self.up(x + q * k + v)).relu())


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.scale = nn.Parameter(torch.ones(1))  # nothing of it is left for the second rank
        self.head = nn.Linear(6, 7, bias=False)

    def forward(self, ids):
        x = self.embedding(ids) * self.scale
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def train(model, optimizer, steps):
    ids = torch.arange(7)
    for _ in range(steps):
        nn.functional.cross_entropy(model(ids), ids.roll(1)).backward()
        optimizer.step()
        optimizer.zero_grad()


def go_on_sharded(rank, folder, name):
    single = torch.load(folder / f"{name}-single.pt", weights_only=True)
    model = Tiny()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = MAKERS[name](model.named_parameters())
    everywhere = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, single["model"], options=everywhere)
    state = FullyShardedDataParallel.rekey_optim_state_dict(single["optimizer"], OptimStateKeyType.PARAM_NAME, model)
    set_optimizer_state_dict(model, optimizer, state, options=everywhere)
    train(model, optimizer, 4)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=whole)
    state = get_optimizer_state_dict(model, optimizer, options=whole)
    if rank == 0:
        state = FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, model)
        torch.save({"model": weights, "optimizer": state}, folder / f"{name}-sharded.pt")


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in MAKERS:
        go_on_sharded(rank, folder, name)
    dist.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that shuts down in order
