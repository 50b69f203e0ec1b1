"""Trains a tiny task of each kind a few steps and saves weights and metrics: `exact_run.py OUT STRATEGY ACCUMULATE...`.

STRATEGY: one (process), ddp, fsdp; the latter two under torchrun. Driven by test_exactness.py.
"""

import logging
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from conftest import Toolbox
from lightning import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lit_tfm.callbacks.samples import sample
from lit_tfm.data.sampling import Key
from lit_tfm.generation.sampling import Sampling
from lit_tfm.optim import muon
from lit_tfm.tasks.causal_lm import CausalLM
from lit_tfm.tasks.classification import Classification
from lit_tfm.tasks.masked_lm import MaskedLM
from lit_tfm.tasks.span_corruption import SpanCorruption

STRATEGIES = {
    "one": lambda: "auto",
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp": lambda: ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
    ),
}
# Lengths and so targets differ from row to row, and 17 rows in batches of 7 leave a batch of 3: fewer than the
# 4 shares of two ranks and two micro-batches, so that fillers are needed too.
LENGTHS = [5, 40, 9, 33, 3, 21, 50, 2, 17, 28, 44, 8, 12, 36, 4, 25, 31]
BATCH_SIZE = 7


def sgd(named_parameters, lr):
    """Linear in the gradient: a wrong factor is seen, and rounding is not blown up."""
    optimizer = torch.optim.SGD([p for _, p in named_parameters], lr=lr, momentum=0.9)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    return optimizer


class Writer(Callback):
    """Text samples as callbacks/samples.py makes them, of the same rows on every rank."""

    def __init__(self, rows):
        self.rows, self.pairs = rows, []

    @torch.no_grad()
    def on_validation_end(self, trainer, pl_module):
        batch = pl_module.collator()([{**row, "key": Key(0, i)} for i, row in enumerate(self.rows)])
        self.pairs += sample(pl_module, batch, Sampling(seed=3), count=2)


def tasks(tools: Toolbox):
    blocks = [tools.block(n, seed=n, documents=np.arange(n, dtype=np.int32) // 6) for n in LENGTHS]
    shifted = [tools.block(n + 1, seed=n, documents=np.zeros(n + 1, dtype=np.int32)) for n in LENGTHS]
    labelled = [{**tools.block(n, seed=n), "tokens_b": None, "label": n % 3} for n in LENGTHS]
    tagged = [{**row, "label": np.array([n % 2, n % 3 == 0, 1])} for row, n in zip(labelled, LENGTHS, strict=True)]
    names = ("yes", "no", "on")
    yield "masked_lm", tools.task(MaskedLM, "encoder"), blocks
    yield "causal_lm", tools.task(CausalLM, "decoder"), shifted
    yield "span_corruption", tools.task(SpanCorruption, "encoder_decoder", label_smoothing=0.1), blocks
    yield "pooled", tools.task(Classification, "encoder", names, token_dropout=0.2), labelled
    yield "label_text", tools.task(Classification, "encoder_decoder", names, multi_label=True), tagged


def train(tools: Toolbox, strategy: str, accumulate: int) -> dict[str, dict]:
    results = {}
    for name, task, rows in tasks(tools):
        task.make_optimizer = lambda named: sgd(named, 0.1)
        task.grad_clip = 0.5
        writer = Writer(rows[:2])
        trainer = tools.fit(task, rows, 5, BATCH_SIZE, accumulate, strategy=STRATEGIES[strategy](), callbacks=[writer])
        results[name] = {
            "samples": writer.pairs,
            # Through the strategy: FSDP's shards are gathered.
            "weights": dict(trainer.strategy.lightning_module_state_dict()),
            "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
            "train_loss": float(task.last_loss),
            "books": [task.progress.tokens, task.progress.targets],
        }
    return results


def by_muon(tools: Toolbox, strategy: str, accumulate: int) -> dict:
    """The matrices that this rank orthogonalised in five steps, and the weights then."""
    _, task, rows = next(tasks(tools))
    task.make_optimizer = lambda named: muon.muon(named, lr=0.01, adamw_lr=0.001)
    done, real = [], muon._directions
    muon._directions = lambda matrices, *more: done.extend(matrices) or real(matrices, *more)
    trainer = tools.fit(task, rows, 5, BATCH_SIZE, accumulate, strategy=STRATEGIES[strategy]())
    muon._directions = real
    return {
        "done": len(done),
        "parts": trainer.optimizers[0].parts,
        "weights": dict(trainer.strategy.lightning_module_state_dict()),
    }


def main(out: Path, strategy: str, *accumulates: int) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tools = Toolbox()
    results = {accumulate: train(tools, strategy, accumulate) for accumulate in accumulates}
    for accumulate in accumulates:
        results[accumulate]["muon"] = by_muon(tools, strategy, accumulate)
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(results, out)
    if dist.is_initialized():
        dist.barrier()
        os._exit(0)  # gloo's threads now and then abort a process that shuts down in order


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
