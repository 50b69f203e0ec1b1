"""One of two gloo processes that train under FSDP2 with EMA; started by test_ema.py.

python ema_sharded.py FOLDER OUT EPOCHS [RESUME]
"""

import os
import sys

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, SequentialSampler

from lit_tfm.callbacks.ema import EMA


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(3, 5), nn.Linear(5, 3)
        self.validated = []

    def forward(self, batch):
        return (self.head(self.layer(batch).tanh()) - batch).square().mean()

    def training_step(self, batch, batch_idx):
        return self(batch)

    def validation_step(self, batch, batch_idx):
        self.validated.append(self(batch).item())

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(folder, out, epochs, resume=None, ranks=1):
    data = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(data, batch_size=4, sampler=SequentialSampler(data))  # the same batch on every rank
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=sharded if ranks > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        val_check_interval=2,  # in the middle of an epoch, with no checkpoint before the next step
        callbacks=[EMA(0.6), ModelCheckpoint(folder, filename=out, save_on_train_epoch_end=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Small()
    trainer.fit(model, loader, loader, ckpt_path=resume)
    return model, trainer


if __name__ == "__main__":
    model, trainer = fit(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:], ranks=2)
    if trainer.is_global_zero:
        torch.save(model.validated, f"{sys.argv[1]}/{sys.argv[2]}.validated")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that shuts down in order
