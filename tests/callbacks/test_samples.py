"""Text samples: they are written, and leave no trace in the run."""

import html
import re
from functools import partial

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lit_tfm.callbacks.confusion import ConfusionPicture
from lit_tfm.callbacks.pace import NEVER, Pace
from lit_tfm.callbacks.samples import Samples, escape, markdown
from lit_tfm.data.facts import DataFacts, SplitStats
from lit_tfm.data.sampling import Key
from lit_tfm.data.tokenizers import Char
from lit_tfm.models.decoder import Decoder
from lit_tfm.models.encoder import Encoder
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.schedules import constant
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
}


class Watched(Samples):
    """Fails where samples disturb the random state or the mode of the model."""

    def on_validation_end(self, trainer, pl_module):
        before, mode = torch.random.get_rng_state(), pl_module.training
        super().on_validation_end(trainer, pl_module)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert pl_module.training == mode


def make(name):
    kind, architecture = KINDS[name]
    torch.manual_seed(0)
    # Dropout, so that a disturbed random state would change the run.
    model = architecture(vocab_size=TOKENIZER.vocab_size, d_model=16, n_layers=1, n_heads=2, max_length=40, dropout=0.3)
    splits = {"train": SPLIT, "validation": SPLIT}
    labels = ("sad", "glad") if name == "classification" else None
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


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    return events


@pytest.mark.parametrize("name", KINDS)
def test_samples_are_written_and_change_nothing(name, tmp_path):
    task = run(name, tmp_path / "with", Watched(count=3), ConfusionPicture())
    plain = run(name, tmp_path / "without")
    for (key, a), b in zip(task.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    texts = read(tmp_path / "with").Tensors("samples/text_summary")
    assert [event.step for event in texts][-1] == 3
    assert len(texts) >= 3
    rows = texts[-1].tensor_proto.string_val[0].decode().splitlines()
    assert len(rows) == 2 + 3
    shown = html.unescape(rows[2])
    expected = {
        "masked_lm": r"\[MASK\]",
        "causal_lm": r"^\| [a-z ]{10} \| .* \|$",
        "span_corruption": r"<extra_id_0>",
        "classification": r"predicted (sad|glad); true sad \|$",
    }[name]
    assert re.search(expected, shown), shown
    images = read(tmp_path / "with").Tags()["images"]
    assert images == (["pictures/confusion_val"] if name == "classification" else [])


def test_nothing_is_computed_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedLM, "samples", lambda *args, **kwargs: pytest.fail("samples were made for nobody"))
    run("masked_lm", tmp_path, Samples(), logger=False)


def test_a_task_without_samples_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delattr(MaskedLM, "samples")
    run("masked_lm", tmp_path, Samples())
    assert "samples/text_summary" not in read(tmp_path).Tags()["tensors"]


@pytest.mark.parametrize(
    "text", ["a|b", "<extra_id_0> *x* _y_ `z`", "# no heading", "[link](http://x)", "a & b\\", "~~s~~ 1 - 2"]
)
def test_texts_are_shown_as_they_are(text):
    cell = escape(text)
    assert html.unescape(cell) == text
    # No sign is left that markdown or HTML gives a meaning, but `&` and `#` of the references themselves.
    assert not re.search(r"[|<>*_`\[\]()~\\]", cell)
    assert not re.search(r"&(?!#\d+;|[a-z]+;)|(?<!&)#", cell)


def test_one_row_a_pair():
    assert markdown([("a\nb", "c\td"), ("e", "")]).splitlines() == [
        "| asked | answered |",
        "| --- | --- |",
        "| a↵ b | c d |",
        "| e |  |",
    ]
