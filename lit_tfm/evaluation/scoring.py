"""Every example of a split through the model once: the sums that metrics are made of, example by example.

Letters: N examples, B of them a batch, T tokens, M targets of a batch, L labels, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tfm.data.sampling import Key
from lit_tfm.errors import UserError
from lit_tfm.evaluation.splits import OpenSplit
from lit_tfm.evaluation.subject import Subject
from lit_tfm.tasks.base import StepOutput
from lit_tfm.tasks.language import IGNORED, LanguageTask
from lit_tfm.tasks.readout import label_losses

Tick = Callable[[int], None]  # told how many more examples are done


@dataclass
class Units:
    """What was summed over each example, or each document: name -> numerators and denominators, (N,) each.

    "loss" is always there: nats, and targets. `metrics` turns means into everything the task reports.
    """

    unit: str  # example | block | document
    sums: dict[str, tuple[np.ndarray, np.ndarray]]
    index: np.ndarray  # (N,) place in the split
    metrics: Callable[[dict[str, float]], dict[str, float]] = field(default=lambda means: means)

    def __len__(self) -> int:
        return len(self.index)

    def means(self, weights: np.ndarray | None = None) -> dict[str, float]:
        """Means over all targets; `weights` (N,): how often each unit counts."""
        weights = np.ones(len(self)) if weights is None else weights
        pairs = {name: (weights @ top, weights @ bottom) for name, (top, bottom) in self.sums.items()}
        return {name: float(top / bottom) if bottom else float("nan") for name, (top, bottom) in pairs.items()}


@dataclass
class Labelled:
    """What a classifier says of N examples, in the order of the split."""

    index: np.ndarray  # (N,)
    labels: np.ndarray  # (N,) class numbers or (N, L) 0/1
    probabilities: np.ndarray  # (N, L)
    losses: np.ndarray  # (N,) nats
    lengths: np.ndarray  # (N,) tokens, special ones included

    def __len__(self) -> int:
        return len(self.index)

    @property
    def predicted(self) -> np.ndarray:
        """As `labels`."""
        if self.labels.ndim == 2:
            return (self.probabilities > 0.5).astype(np.int64)
        return self.probabilities.argmax(1)

    @property
    def right(self) -> np.ndarray:
        """(N,) bool: the label, or all of them."""
        same = self.predicted == self.labels
        return same.all(1) if same.ndim == 2 else same

    @property
    def confidence(self) -> np.ndarray:
        """(N,) probability of what is predicted; of several labels, that all are as predicted, taken as independent."""
        if self.labels.ndim == 2:
            return np.maximum(self.probabilities, 1 - self.probabilities).prod(1)
        return self.probabilities.max(1)


def batches(subject: Subject, split: OpenSplit, one_by_one: bool = False) -> Iterator[tuple[np.ndarray, dict]]:
    """Every example of the split once: (B,) places and the collated batch, on the device."""
    data = split.data
    dataset, plan = data.dataset(split.inner), data.plan(split.inner)
    for step in range(plan.steps(0)):
        chosen = plan.batch(0, step)
        for part in np.split(chosen, len(chosen)) if one_by_one else [chosen]:
            examples = dataset.__getitems__([Key(0, index) for index in part.tolist()])
            yield part, subject.moved(data.collator(examples))


def count(split: OpenSplit) -> int:
    """Examples that `batches` will go through."""
    plan = split.data.plan(split.inner)
    return sum(len(plan.batch(0, step)) for step in range(plan.steps(0)))


@torch.inference_mode()
def classify(subject: Subject, split: OpenSplit, tick: Tick) -> Labelled:
    task, found = subject.task, []
    for places, batch in batches(subject, split):
        with subject.autocast():
            scores = task.scores(batch)
        check_finite(scores)
        likely = scores.double().sigmoid() if task.facts.multi_label else scores.double().softmax(1)
        losses = label_losses(scores.float(), batch["labels"])
        found.append((places, *(part.cpu().numpy() for part in (batch["labels"], likely, losses.double()))))
        tick(len(places))
    index, labels, likely, losses = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(index)
    lengths = split.data.dataset(split.inner).lengths[index]
    return Labelled(*(part[order] for part in (index, labels, likely, losses, lengths)))


def blocks(subject: Subject, split: OpenSplit, tick: Tick) -> Units:
    """Any other task: the examples of training, and the task's own sums over each of them."""
    task = subject.task
    recorded = isinstance(task, LanguageTask)
    found, names = [], None
    for places, batch in batches(subject, split, one_by_one=not recorded):
        with torch.inference_mode(), subject.autocast():
            sums = by_row(task, batch, len(places)) if recorded else of_one(task(batch))
        check_finite(sums["loss"][0])
        names = sorted(sums)
        table = torch.stack([torch.stack(sums[name]) for name in names])  # (names, 2, B)
        found.append((places, table.cpu().numpy()))
        tick(len(places))
    index = np.concatenate([places for places, _ in found])
    order, table = np.argsort(index), np.concatenate([table for _, table in found], axis=2)
    sums = {name: (pair[0][order], pair[1][order]) for name, pair in zip(names, table, strict=True)}
    stage = "val" if split.inner == "validation" else "test"
    return Units("block", sums, index[order], lambda means: task.report(dict(means), stage))


def of_one(output: StepOutput) -> dict[str, tuple[Tensor, Tensor]]:
    """The sums of a batch of one example."""
    pairs = {"loss": (output.loss_sum, output.count), **output.sums}
    return {name: tuple(torch.as_tensor(part).double().reshape(1) for part in pair) for name, pair in pairs.items()}


def by_row(task: LanguageTask, batch: dict[str, Any], rows: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The task's sums, for each row of the batch instead of all together: (B,) each.

    The task's loss over the vocabulary is listened to: it meets every target, row after row.
    """
    with listening(task) as heard:
        output = task(batch)
    losses, hits, labels = (torch.cat(parts) for parts in zip(*heard, strict=True))  # (M,)
    width = batch["labels"].shape[1]
    at = batch["targets_at"] if "targets_at" in batch else torch.arange(len(labels), device=labels.device)
    owner, counted = at // width, labels != IGNORED
    if len(at) != len(labels) or set(output.sums) - {"accuracy", "text_loss"}:
        raise UserError(f"{type(task).__name__} has a loss that can't be told by example; evaluate needs that")

    def summed(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        top = torch.zeros(rows, dtype=torch.float64, device=values.device)
        return top.index_add(0, owner, values.double() * mask), top.index_add(0, owner, mask.double())

    sums = {"loss": summed(losses, counted), "accuracy": summed(hits, counted)}
    if "is_text" in batch:
        sums["text_loss"] = summed(losses, batch["is_text"].flatten() & counted)
    return sums


@contextmanager
def listening(task: LanguageTask) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """While it lasts, what goes through `vocabulary_loss` is noted: loss, hit and label of each target."""
    heard: list[tuple[Tensor, Tensor, Tensor]] = []
    plain = task.vocabulary_loss

    def listen(logits: Tensor, labels: Tensor) -> StepOutput:
        heard.append((*token_losses(logits, labels), labels))
        return plain(logits, labels)

    task.vocabulary_loss = listen
    try:
        yield heard
    finally:
        del task.vocabulary_loss


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """logits (M, V), labels (M,) -> losses in nats and whether the likeliest token is the right one, (M,) each."""
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
    return loss, logits.argmax(-1) == labels


def check_finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise UserError("the model's outputs are not finite: its weights are worthless; try --checkpoint last or best")
