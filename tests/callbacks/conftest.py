"""Runs of three steps for callbacks: every task, a tiny model with dropout, so that what disturbs a run is seen."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lit_tfm.callbacks.pace import NEVER, Pace
from lit_tfm.data.facts import DataFacts, SplitStats
from lit_tfm.data.sampling import Key
from lit_tfm.data.tokenizers import Char
from lit_tfm.models.decoder import Decoder
from lit_tfm.models.encoder import Encoder
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.schedules import constant
from lit_tfm.tasks.base import Task
from lit_tfm.tasks.causal_lm import CausalLM
from lit_tfm.tasks.classification import Classification
from lit_tfm.tasks.masked_lm import MaskedLM
from lit_tfm.tasks.span_corruption import SpanCorruption

TOKENIZER = Char(sentinels=20).train(["abcdefghijklmnopqrstuvwxyz "])
SPLIT = SplitStats(documents=1, tokens=10, bytes=10, words=2, wasted_tokens=0, examples=4)
KINDS = {
    "masked_lm": (MaskedLM, Encoder),
    "causal_lm": (CausalLM, Decoder),
    "span_corruption": (SpanCorruption, EncoderDecoder),
    "classification": (Classification, Encoder),
    "label_text": (Classification, EncoderDecoder),
}


def make(name):
    kind, architecture = KINDS[name]
    torch.manual_seed(0)
    # Dropout, so that a disturbed random state would change the run.
    model = architecture(vocab_size=TOKENIZER.vocab_size, d_model=16, n_layers=1, n_heads=2, max_length=40, dropout=0.3)
    splits = {"train": SPLIT, "validation": SPLIT}
    labels = ("sad", "glad") if kind is Classification else None
    facts = DataFacts(tokenizer=TOKENIZER, splits=splits, labels=labels)
    return kind(model=model, facts=facts, optimizer=partial(adamw, lr=1e-2), schedule=constant)


def run(name, folder, *callbacks, logger=True):
    """Three steps, a validation after each."""
    task = make(name)
    task.progress.max_steps = 3
    random = np.random.default_rng(0)
    rows = [
        {
            "tokens": random.integers(25, TOKENIZER.vocab_size, 21),
            "document_ids": None,
            "label": i % 2,
            "key": Key(0, i),
        }
        for i in range(12)
    ]
    loader = partial(DataLoader, rows, batch_size=4, collate_fn=task.collator())
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=TensorBoardLogger(folder, name="", version="") if logger else False,
        callbacks=[Pace(1), *callbacks],
        max_steps=-1,
        max_epochs=-1,
        val_check_interval=NEVER,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    torch.manual_seed(1)
    trainer.fit(task, loader(generator=torch.Generator()), loader(generator=torch.Generator()))
    return task


@pytest.fixture
def make_task() -> Callable[[str], Task]:
    """`make_task("masked_lm")`; the names are those of KINDS."""
    return make


@pytest.fixture
def fit() -> Callable[..., Task]:
    """`fit("masked_lm", folder, *callbacks)`: three steps, a validation after each; the trained task."""
    return run


@pytest.fixture
def read_events() -> Callable[[Path], EventAccumulator]:
    return read


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    return events
