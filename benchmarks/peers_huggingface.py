"""Hugging Face's Trainer as a contestant: the models and settings of its run_mlm and run_glue recipes.

Models start from random weights; data come from lists of token ids, so that both sides read the same tokens.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from curves import Curve, Point, Stopwatch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()


class Clock(TrainerCallback):
    """Measures the model every `every` steps and at the end; its clock stands still meanwhile."""

    def __init__(self, measure: Callable[[nn.Module], float], every: int, enough: Callable[[float], bool]) -> None:
        self.measure, self.every, self.enough = measure, every, enough
        self.curve: Curve = []
        self.stopwatch = Stopwatch()

    def on_train_begin(self, args, state, control, **parts) -> None:
        self.stopwatch.start()

    def on_step_end(self, args, state, control, model: nn.Module, **parts) -> None:
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        self.stopwatch.stop()
        model.eval()
        seconds, cpu = self.stopwatch.seconds, self.stopwatch.cpu
        self.curve.append(Point(state.global_step, seconds, self.measure(model), cpu))
        model.train()
        control.should_training_stop = control.should_training_stop or self.enough(self.curve[-1].value)
        self.stopwatch.start()


def train(
    model: nn.Module,
    examples: Sequence[dict],
    collator: Callable,
    measure: Callable[[nn.Module], float],
    every: int,
    enough: Callable[[float], bool] = lambda value: False,
    **settings: Any,
) -> Curve:
    """The curve of a Trainer's run; `settings` are TrainingArguments, the others as its recipes leave them.

    It ends early where a measured value is `enough`.
    """
    clock = Clock(measure, every, enough)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=500, **settings
        )
        data = datasets.Dataset.from_list(list(examples))
        Trainer(model, arguments, data_collator=collator, train_dataset=data, callbacks=[clock]).train()
    return clock.curve


def tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """A tokenizer.json of ours, with the names of the special tokens that collators ask for."""
    names = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **{f"{key}_token": name for key, name in names.items()})


def bert(vocab_size: int, d_model: int, n_layers: int, n_heads: int, **options: Any) -> BertConfig:
    """BERT of our shape; everything else, dropout too, as in BertConfig."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        intermediate_size=4 * d_model,
        **options,
    )


def masked_lm(config: BertConfig, seed: int) -> BertForMaskedLM:
    torch.manual_seed(seed)
    return BertForMaskedLM(config)


def classifier(config: BertConfig, seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(config)


def masking(words: PreTrainedTokenizerFast) -> DataCollatorForLanguageModeling:
    """run_mlm's: 15 % of the tokens, of which 80 % become the mask, 10 % another token, 10 % stay."""
    return DataCollatorForLanguageModeling(tokenizer=words, mlm_probability=0.15)


def padding(words: PreTrainedTokenizerFast) -> DataCollatorWithPadding:
    """run_glue's without --pad_to_max_length: to the longest of the batch."""
    return DataCollatorWithPadding(words)
