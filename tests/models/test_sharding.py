"""The models under FSDP2, every block a shard, two processes: the same weights after training as one process has.

The file is also the script the processes run.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lit_tfm.models.decoder import Decoder
from lit_tfm.models.encoder import Encoder
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.nn.block import Block
from lit_tfm.nn.heads import LMHead

SIZES = {"vocab_size": 29, "d_model": 24, "n_layers": 2, "n_heads": 4, "d_ff": 32, "max_length": 16, "zero_init": False}
CASES = {
    "encoder": (Encoder, {"positions": "learned", "tie_embeddings": True, "norm_weight": True, "bias": True}),
    "decoder": (Decoder, {"value_embeddings": True, "n_kv_heads": 2, "activation_checkpointing": True}),
    "rezero": (Decoder, {"norm_position": "rezero", "positions": "alibi", "tie_embeddings": True}),
    "encoder_decoder": (EncoderDecoder, {"positions": "t5", "activation_checkpointing": True, "attention_scale": 1.0}),
}


class Learner(nn.Module):
    """What a task is to FSDP: the root, through whose forward everything goes."""

    def __init__(self, architecture, options):
        super().__init__()
        torch.manual_seed(3)
        self.model = architecture(**SIZES, **options)
        tied = self.model.embedding if self.model.config.tie_embeddings else None
        self.head = LMHead(24, 29, tied=tied)

    def forward(self, ids, mask):
        arguments = (ids, ids) if self.model.kind == "encoder_decoder" else (ids,)
        logits = self.head(self.model.hidden(*arguments, attention_mask=mask))
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


def learn(learner, ids, mask):
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    for _ in range(3):
        learner(ids, mask).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in learner.named_parameters()}


def shard(learner, policy):
    for module in learner.modules():
        if isinstance(module, Block):
            fully_shard(module, mp_policy=policy)
    return fully_shard(learner, mp_policy=policy)


def work(rank, store, case):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(5)
    ids, mask = torch.randint(29, (4, 8)), torch.ones(4, 8, dtype=torch.bool)
    half = slice(2 * rank, 2 * rank + 2)
    alone = learn(Learner(*CASES[case]), ids, mask)
    together = learn(shard(Learner(*CASES[case]), MixedPrecisionPolicy()), ids[half], mask[half])
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=1e-5, rtol=1e-5, msg=name)
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for name, weight in learn(shard(Learner(*CASES[case]), low), ids[half], mask[half]).items():
        assert (weight - alone[name]).abs().max() < 0.1, name
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_sharded_processes_learn_what_one_does(tmp_path, case):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "store"), case],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=180)
        assert worker.returncode == 0, output


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.stdout.flush()
    os._exit(0)  # gloo's threads abort some processes that end in Python's way, see lit_tfm/leaving.py
