"""The result of an evaluation as plain values: what stands in evaluation/<name>.json, and beside it by example.

evaluation/<name>.json           metrics with their intervals, what was measured on what, and the error analysis
evaluation/<name>.examples.csv   a classifier: index,label,predicted,probability,loss
                                 a language model: index,loss,targets; the loss is the sum over the targets, in nats,
                                 of the unit that the json names (block or document); of documents also bytes
"""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_tfm.data.facts import SplitStats
from lit_tfm.errors import UserError
from lit_tfm.evaluation import bootstrap, calibration, classifier, mistakes, pseudo, windows
from lit_tfm.evaluation.scoring import Labelled, Tick, Units, blocks, classify, count
from lit_tfm.evaluation.splits import OpenSplit
from lit_tfm.evaluation.subject import Subject
from lit_tfm.models.decoder import Decoder
from lit_tfm.runs import write_text
from lit_tfm.tasks.causal_lm import CausalLM
from lit_tfm.tasks.classification import Classification
from lit_tfm.tasks.language import LanguageTask, perplexities
from lit_tfm.tasks.masked_lm import MaskedLM

PSEUDO = ("perplexity", "word_perplexity", "bits_per_byte")
Progress = Callable[[str, int], Tick]  # what is done and how many there are -> what to call when some more are done


@dataclass
class Options:
    stride: int | None = None  # of sliding windows, in tokens
    context: int | None = None  # tokens of a window
    one_by_one: bool = False  # masked models: hide every token once, alone
    resamples: int = 1000
    seed: int = 0  # of the resamples
    mistakes: int = 20  # kept in the json


@dataclass
class Report:
    content: dict[str, Any]  # the json
    examples: list[list[Any]] = field(default_factory=list)  # the csv, its head first

    def write(self, folder: Path, name: str) -> Path:
        """Both files, each whole or not at all; the json last, so that it never speaks of a csv that is not there."""
        try:
            folder.mkdir(exist_ok=True)
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(self.examples)
            write_text(folder / f"{name}.examples.csv", text.getvalue())
            write_text(folder / f"{name}.json", json.dumps(finite(self.content), indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"{error.filename}: can't be written ({error.strerror}); make room, or the right"
            ) from error
        return folder / f"{name}.json"


def evaluate(subject: Subject, split: OpenSplit, options: Options, progress: Progress) -> Report:
    """Measure a run on a split, whatever its task."""
    if options.one_by_one and not isinstance(subject.task, MaskedLM):
        raise UserError(f"--one-by-one is for masked language models, and this is a {type(subject.task).__name__}")
    if isinstance(subject.task, Classification):
        report = of_classifier(subject, split, options, progress)
    elif isinstance(subject.task, CausalLM):
        report = of_causal(subject, split, options, progress)
    else:
        report = of_blocks(subject, split, options, progress)
    stats = facts(split)
    origin = split.data.origin
    about = {
        "run": str(subject.run.path.resolve()),
        "checkpoint": subject.weights.name,
        "task": type(subject.task).__name__,
        "split": split.name,
        "data": {"name": origin["name"], "source": origin["source"], "hash": origin["hash"], "own": split.own},
        "tokenizer": subject.task.facts.tokenizer.hash,
        "documents": stats.documents,
        "tokens": stats.tokens,
        "truncated": stats.truncated,
        "unknown_tokens": stats.unknown_tokens,
        "notes": [*subject.notes, *split.notes],
        "precision": subject.hardware.precision,
        "bootstrap": {"resamples": options.resamples, "seed": options.seed, "level": bootstrap.LEVEL},
    }
    report.content = {**about, **report.content}
    return report


# ---- classifiers -----------------------------------------------------------------------------------------------


def of_classifier(subject: Subject, split: OpenSplit, options: Options, progress: Progress) -> Report:
    found = classify(subject, split, progress("texts", count(split)))
    names = subject.task.facts.labels
    content = {
        "examples": {"unit": "example", "count": len(found)},
        "metrics": classifier.measure(found),
        "intervals": bootstrap.intervals(classifier.statistic(found), len(found), options.resamples, options.seed),
        "labels": list(names),
        "by_class": classifier.by_class(found, names),
        "confusion": classifier.confusion(found).tolist(),
        "most_confused": mistakes.confused(found, names),
        "by_length": mistakes.by_length(found),
        "reliability": calibration.reliability(found.labels, found.probabilities),
        "mistakes": {
            "count": int((~found.right).sum()),
            "most_confident": mistakes.most_confident(found, names, split.texts, options.mistakes),
        },
    }
    return Report(content, labelled_rows(found, names))


def labelled_rows(found: Labelled, names: tuple[str, ...]) -> list[list[Any]]:
    columns = (
        found.index.tolist(),
        mistakes.named(found.labels, names),
        mistakes.named(found.predicted, names),
        (f"{value:.8g}" for value in found.confidence),
        (f"{value:.8g}" for value in found.losses),
    )
    return [["index", "label", "predicted", "probability", "loss"], *map(list, zip(*columns, strict=True))]


# ---- language models and whatever else -------------------------------------------------------------------------


def of_units(subject: Subject, units: Units, options: Options, prefix: str = "") -> Report:
    """Metrics that follow from sums over units."""
    metrics = named(subject, units.metrics(units.means()), prefix)
    content = {
        "examples": {"unit": units.unit, "count": len(units)},
        "metrics": metrics,
        "intervals": bootstrap.intervals(
            statistic(subject, units, prefix), len(units), options.resamples, options.seed
        ),
    }
    losses, targets = units.sums["loss"]
    rows = zip(units.index.tolist(), (f"{x:.9g}" for x in losses), targets.astype(int).tolist(), strict=True)
    return Report(content, [["index", "loss", "targets"], *map(list, rows)])


def of_blocks(subject: Subject, split: OpenSplit, options: Options, progress: Progress) -> Report:
    """The examples of training; where every token was hidden alone as well, intervals and examples are of that."""
    fixed = of_units(subject, blocks(subject, split, progress("blocks", count(split))), options)
    if not options.one_by_one:
        return fixed
    units, stats = pseudo.score(subject, split, progress("blocks, token by token", count(split))), facts(split)
    units.metrics = lambda means: {**means, **perplexities(means["loss"], stats)}
    return beside(of_units(subject, units, options, prefix="one_by_one_"), fixed)


def facts(split: OpenSplit) -> SplitStats:
    return split.data.facts.splits[split.inner]


def beside(report: Report, other: Report) -> Report:
    """The report with the other's metrics and intervals as well."""
    for part in ("metrics", "intervals"):
        report.content[part] |= other.content[part]
    return report


def statistic(subject: Subject, units: Units, prefix: str) -> bootstrap.Statistic:
    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = [named(subject, units.metrics(units.means(row)), prefix) for row in weights]
        return {name: np.array([one[name] for one in found]) for name in found[0]}

    return metrics


def named(subject: Subject, metrics: dict[str, float], prefix: str) -> dict[str, float]:
    """Perplexities of a model that sees a token from both sides are called pseudo."""
    task = subject.task
    pseudo = isinstance(task, LanguageTask) and Decoder not in task.architectures
    return {f"{prefix}{'pseudo_' * (pseudo and name in PSEUDO)}{name}": value for name, value in metrics.items()}


def of_causal(subject: Subject, split: OpenSplit, options: Options, progress: Progress) -> Report:
    """Sliding windows, which the intervals and examples are of, and beside them the blocks of training."""
    data, stats = split.data, facts(split)
    context, stride = window(subject, options, data.block_size)
    store, limit = data.stores[split.inner], data.limits[split.inner]
    slid = windows.windows_of(store, context, stride, data.cross_documents)
    if limit is not None:
        slid = slid.some(-(-limit * data.block_size // stride))
    fixed = blocks(subject, split, progress("blocks", count(split)))
    losses, hits = windows.score(subject, store, slid, progress("tokens in sliding windows", slid.targets))
    units = windows.units(store, losses, hits, context)
    units.metrics = lambda means: {**means, **perplexities(means["loss"], stats)}
    report = of_units(subject, units, options, prefix="sliding_")
    if units.unit == "document":  # so that runs with other tokenizers compare, document by document
        sizes = [len(text.encode()) for text in split.source.documents(split.inner)]
        report.examples[0].append("bytes")
        for row in report.examples[1:]:
            row.append(sizes[row[0]])
    beside(report, of_units(subject, fixed, options))
    report.content["sliding"] = {"context": context, "stride": stride}
    return report


def window(subject: Subject, options: Options, trained: int) -> tuple[int, int]:
    """Context and stride. By default the blocks of training: positions beyond are nothing the model has learnt."""
    positions = subject.task.model.config.max_length
    context = min(trained, positions) if options.context is None else options.context
    if not 1 <= context <= positions:
        raise UserError(f"--context {context}: the model has positions for {positions} tokens; type 1 to {positions}")
    return context, options.stride if options.stride is not None else max(1, context // 2)


def finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: null, and the word."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
