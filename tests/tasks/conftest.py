"""Tiny models, tokenizers and facts, and a real Lightning run as build.py makes it, without files or network."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from lit_tfm.callbacks.pace import NEVER, Pace
from lit_tfm.data.facts import DataFacts, SplitStats
from lit_tfm.data.sampling import Key, SequentialPlan, ShuffledPlan, StepSampler
from lit_tfm.data.tokenizers import Char
from lit_tfm.models.decoder import Decoder
from lit_tfm.models.encoder import Encoder
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.schedules import constant

ARCHITECTURES = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}
LETTERS = "abcdefghijklmnopqrstuvwxyz ,yesno"


class Rows:
    """A data set of examples without their keys."""

    def __init__(self, rows):
        self.rows = rows

    def __getitem__(self, key):
        return {**self.rows[key.index], "key": key}


class Toolbox:
    """Makers shared by the tests of all tasks."""

    def __init__(self):
        self.tokenizer = Char(sentinels=40).train([LETTERS])

    def facts(self, labels=None, multi_label=False, **stats):
        numbers = {"documents": 1, "tokens": 300, "bytes": 900, "words": 60, "wasted_tokens": 0, "examples": 4, **stats}
        split = SplitStats(**numbers)
        return DataFacts(
            tokenizer=self.tokenizer,
            splits={"train": split, "validation": split, "test": split},
            labels=labels,
            multi_label=multi_label,
        )

    def model(self, kind, seed=0, **options):
        torch.manual_seed(seed)
        defaults = {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_length": 64, "zero_init": False}
        return ARCHITECTURES[kind](vocab_size=self.tokenizer.vocab_size, **{**defaults, **options})

    def task(self, kind, architecture, labels=None, multi_label=False, lr=3e-3, model=None, stats=None, **options):
        return kind(
            model=self.model(architecture, **(model or {})),
            facts=self.facts(labels, multi_label, **(stats or {})),
            optimizer=partial(adamw, lr=lr),
            schedule=constant,
            **options,
        )

    def block(self, length, seed=0, documents=None):
        """An example of language modelling without its key."""
        random = np.random.default_rng(seed)
        ordinary = np.arange(5 + 40, self.tokenizer.vocab_size)
        return {"tokens": random.choice(ordinary, length), "document_ids": documents}

    @staticmethod
    def loader(rows, collator, batch_size, accumulate=1, rank=0, world=1, train=True):
        plan = ShuffledPlan(len(rows), batch_size, seed=3) if train else SequentialPlan(len(rows), batch_size)
        sampler = StepSampler(plan, rank, world, accumulate if train else 1, endless=train)
        return DataLoader(Rows(rows), batch_sampler=sampler, collate_fn=collator, generator=torch.Generator())

    def fit(self, task, rows, steps, batch_size, accumulate=1, validation=None, seed=11, resume=None, **options):
        """Train `steps` optimizer steps, then validate; the trainer. `options` go to the Trainer, `resume` to its fit.

        Under torchrun every rank gets its share.
        """
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        collator = task.collator()
        collator.seed = seed
        task.progress.max_steps = steps
        callbacks = [Pace(NEVER), *options.pop("callbacks", ())]
        settings = {"accelerator": "cpu", "devices": world, "logger": False, "log_every_n_steps": 1, **options}
        trainer = Trainer(
            callbacks=callbacks,
            max_steps=-1,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            val_check_interval=NEVER,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,
            **settings,
        )
        train = self.loader(rows, collator, batch_size, accumulate, rank, world)
        held_out = rows if validation is None else validation
        evaluated = self.loader(held_out, collator, batch_size, 1, rank, world, train=False)
        trainer.fit(task, train, evaluated, ckpt_path=resume, weights_only=True)
        return trainer


@pytest.fixture(scope="session")
def tools():
    return Toolbox()


@pytest.fixture
def keyed():
    """Examples with keys 0, 1, ... of one epoch; `fillers` lists which of them count for nothing."""

    def make(rows, epoch=0, fillers=()):
        return [{**row, "key": Key(epoch, i, i in fillers)} for i, row in enumerate(rows)]

    return make
