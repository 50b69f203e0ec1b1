"""What every kind of text data shares: from a source to cached tokens, and from cached tokens to batches.

    source -> splits -> tokenizer, trained on the training split -> token stores -> dataset and plan -> loader

Everything up to the stores is cached by content: a folder's key is a hash of the source, the tokenizer and whatever
else changes the tokens, so a second run, another rank or a parallel trial finds it done. A new kind of data says what
texts there are (`texts`), how a split is stored (`build`), what its examples are (`make_dataset`), how they are
batched (`make_plan`) and what its figures are (`stats`).
"""

import hashlib
import inspect
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_tfm.data.facts import DataFacts, SplitStats
from lit_tfm.data.holdout import HeldOut
from lit_tfm.data.sampling import Plan, StepSampler
from lit_tfm.data.sources.hub import Hub
from lit_tfm.data.sources.resolve import resolve
from lit_tfm.data.store import TokenStore, build_once, overlap
from lit_tfm.data.tokenizers import Recipe, Tokenizer
from lit_tfm.errors import UserError, nearest

log = logging.getLogger(__name__)
VERSION = 2  # raised when what is stored changes, so that caches are made anew


class TextData(LightningDataModule, ABC):
    """Base of the data modules.

    path:         files to read: one, a folder, a glob, a list of these, or a mapping of split to them.
    hub:          the hub's data set where no path is given: repo, config, splits, and its columns (see Hub).
    fallback:     built-in text where the hub can't be reached: pydoc, pydoc_modules, null = an error instead.
    text, header, delimiter, errors: how the files are read, with further options of each kind of data (see Files).
    tokenizer:    recipe of the tokenizer (conf/tokenizer).
    holdout:      {validation: share, test: share}, cut off the training split where the source lacks one.
    subset:       train on so many examples only (a fixed random choice or the beginning): quick trials.
    val_limit:    validate on so many examples only; test_limit likewise.
    batch_size:   examples of an optimizer step, over all ranks and micro-batches.
    batch_tokens: tokens of an optimizer step instead, padding included.
    num_workers:  loader processes; null = 0 on a CPU, where they would compete with the model, 2 beside an accelerator.
    cache_dir:    token stores and trained tokenizers.
    """

    def __init__(
        self,
        tokenizer: Recipe,
        path: str | list[str] | dict[str, str] | None = None,
        hub: dict[str, Any] | None = None,
        fallback: str | None = None,
        text: str | int | list[str | int] = "text",
        header: bool | None = None,
        delimiter: str | None = None,
        errors: str = "strict",
        holdout: dict[str, float] | None = None,
        subset: int | None = None,
        val_limit: int | None = None,
        test_limit: int | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        cache_dir: str | Path = "~/.cache/lit_tfm",
    ) -> None:
        super().__init__()
        self.recipe = tokenizer
        self.path, self.hub, self.fallback = plain(path), plain(hub), fallback
        self.files = {"text": plain(text), "header": header, "delimiter": delimiter, "errors": errors}
        self.holdout = {"validation": 0.1} if holdout is None else plain(holdout)
        self.limits = {"train": subset, "validation": val_limit, "test": test_limit}
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.num_workers, self.seed, self.cache_dir = num_workers, seed, Path(cache_dir).expanduser()
        self.collator: Any = None
        self.stores: dict[str, TokenStore] = {}
        self.origin: dict[str, Any] = {}
        self._datasets: dict[str, Dataset] = {}
        self._facts: DataFacts | None = None
        self._check()

    def _check(self) -> None:
        numbers = {"batch_size": self.batch_size, "batch_tokens": self.batch_tokens, "subset": self.limits["train"],
                   "val_limit": self.limits["validation"], "test_limit": self.limits["test"]}  # fmt: skip
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name}={value}: must be 1 or more")
        if self.batch_size is None and self.batch_tokens is None:
            raise UserError("data.batch_size and data.batch_tokens are both null; give one, e.g. data.batch_size=32")
        for key in self.hub or {}:
            if key not in (known := list(inspect.signature(Hub).parameters)):
                raise UserError(f"data.hub.{key}: no such key{nearest(key, known)}; there is {', '.join(known)}")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must be 0 or more")

    # ---- what a kind of data says ---------------------------------------------------------------------------------

    @abstractmethod
    def texts(self, source: HeldOut, split: str) -> Iterator[str]:
        """All texts of a split, for training the tokenizer."""

    @abstractmethod
    def build(self, folder: Path, source: HeldOut, split: str, tokenizer: Tokenizer) -> None:
        """Fill the folder with the token store of a split and whatever stands beside it."""

    @abstractmethod
    def layout(self) -> Any:
        """The options that change what `build` writes: part of the cache key."""

    @abstractmethod
    def make_dataset(self, split: str) -> Dataset:
        """Examples by `Key`."""

    @abstractmethod
    def make_plan(self, split: str, dataset: Dataset, batch_size: int | None, batch_tokens: int | None) -> Plan:
        """Batches of the split; training is shuffled, the others are one pass in a fixed order."""

    @abstractmethod
    def stats(self, split: str) -> SplitStats:
        """Figures of a split, from its store."""

    # ---- preparing ------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fill the cache, or find it filled, and open it. May run in many processes at once: one of them works."""
        if self._facts is not None:
            return
        source = self.source()
        if "validation" not in source.splits():
            raise UserError(
                f"{source.name} has no validation split; hold out a share of the training split: "
                "data.holdout.validation=0.1"
            )
        self.open(source, self._tokenizer(source))

    def source(self) -> HeldOut:
        """Where the texts come from, with the splits it lacks held out."""
        # The hub's columns are called as those of files unless its own options say otherwise.
        named = {key: self.files[key] for key in ("text", "text_b", "label") if key in self.files}
        hub = None if self.hub is None else {**named, **self.hub}
        return HeldOut(resolve(self.path, self.files, hub, self.fallback, self.cache_dir), self.holdout)

    def open(self, source: HeldOut, tokenizer: Tokenizer) -> None:
        """Make or find the tokens of a source's splits, and know their facts."""
        self.prepare_splits(source, tokenizer)
        tokenizer.forget()  # a run keeps it for as long as it trains
        self.origin = {
            "name": source.name,
            "source": source.source.origin,
            "hash": source.fingerprint(),
            "held_out": source.cuts,
            "notice": source.source.notice,
        }
        self.origin["overlap"] = self.overlaps()
        self._facts = self.make_facts(tokenizer)

    def overlaps(self) -> dict[str, int]:
        """Of each other split, how many of its texts are in the training split as well."""
        train = self.stores.get("train")
        others = [split for split in self.stores if split != "train" and train is not None]
        return {split: overlap(self.stores[split], train, self.texts_an_example(split)) for split in others}

    def texts_an_example(self, split: str) -> int:
        return 1

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()

    def prepare_splits(self, source: HeldOut, tokenizer: Tokenizer) -> None:
        """Open the store of every split, the training split first."""
        for split in source.splits():
            store = TokenStore(self.folder(source, split, tokenizer))
            if not len(store):
                raise UserError(
                    f"the {split} split of {source.name} is empty; check data.path, or take that file away and "
                    f"hold out a share of the training split: data.holdout.{split}=0.1"
                )
            self.stores[split] = store

    def folder(self, source: HeldOut, split: str, tokenizer: Tokenizer) -> Path:
        """The cached folder of a split, built if need be."""

        def build(folder: Path) -> None:
            log.info("tokenizing the %s split of %s", split, source.name)
            self.build(folder, source, split, tokenizer)
            _check_unchanged(source, fingerprint)

        fingerprint = source.fingerprint()
        parts = [VERSION, type(self).__name__, fingerprint, source.key(split), tokenizer.hash, self.layout()]
        return build_once(self.cache_dir / "tokens", digest(parts), build)

    def _tokenizer(self, source: HeldOut) -> Tokenizer:
        """Trained on the training split, and cached."""
        if self.recipe.path is not None:
            return self.recipe.train(())

        def build(folder: Path) -> None:
            log.info("training the tokenizer on %s", source.name)
            self.recipe.train(self.texts(source, "train")).save(folder / "tokenizer.json")
            _check_unchanged(source, fingerprint)

        fingerprint = source.fingerprint()
        parts = [VERSION, fingerprint, source.key("train"), self.recipe.fingerprint(), self.text_layout()]
        return Tokenizer.from_file(build_once(self.cache_dir / "tokenizers", digest(parts), build))

    def text_layout(self) -> Any:
        """The options that change what `texts` yields."""
        return None

    def make_facts(self, tokenizer: Tokenizer) -> DataFacts:
        """Tokenizer, splits, and for classification the labels."""
        return DataFacts(tokenizer=tokenizer, splits={split: self.stats(split) for split in self.stores})

    # ---- asking ---------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> DataFacts:
        """What is known after `prepare_data`."""
        if self._facts is None:
            raise RuntimeError("prepare_data() comes before facts")
        return self._facts

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch; with batches by length others may differ by a few."""
        return self.plan("train").steps(0)

    def records(self) -> dict[str, Any]:
        """What was really used, as plain values: data.json of the run folder."""
        facts = self.facts
        return {
            **self.origin,
            "tokenizer": facts.tokenizer.hash,
            "vocab_size": facts.tokenizer.vocab_size,
            "labels": None if facts.labels is None else list(facts.labels),
            "splits": {split: asdict(stats) for split, stats in facts.splits.items()},
            "limits": {split: limit for split, limit in self.limits.items() if limit is not None},
        }

    # ---- loading --------------------------------------------------------------------------------------------------

    def connect(self, collator: Any, seed: int) -> None:
        """Take the task's collator, which says how many extra tokens it needs, and the run's seed."""
        self.collator, self.seed = collator, seed
        collator.seed = seed
        self._datasets.clear()  # they were made for another seed, or without the extra tokens
        self.setup()
        self._facts = self.make_facts(self.facts.tokenizer)  # what is cut and padded depends on the collator

    @property
    def extra_tokens(self) -> int:
        return getattr(self.collator, "extra_tokens", 0)

    def dataset(self, split: str) -> Dataset:
        self.setup()
        if split not in self._datasets:
            self._datasets[split] = self.make_dataset(split)
        return self._datasets[split]

    def plan(self, split: str, share: int = 1) -> Plan:
        """Batches of a split; a batch of evaluation is 1/share of a training batch."""
        whole = (None if size is None else max(1, size // share) for size in (self.batch_size, self.batch_tokens))
        return self.make_plan(split, self.dataset(split), *whole)

    def train_dataloader(self) -> DataLoader:
        """Endless: the trainer ends the run. Begins at the step the trainer has reached."""
        rank, world, accumulate = self._shares()
        start = self.trainer.global_step if self.trainer is not None else 0
        return self._loader("train", StepSampler(self.plan("train"), rank, world, accumulate, start))

    def val_dataloader(self) -> DataLoader:
        """One pass over the validation split."""
        return self._one_pass("validation")

    def test_dataloader(self) -> DataLoader:
        """One pass over the test split. Raises UserError where there is none."""
        self.setup()
        if "test" not in self.stores:
            raise UserError(f"{self.origin['name']} has no test split; hold one out: data.holdout.test=0.1")
        return self._one_pass("test")

    def _one_pass(self, split: str) -> DataLoader:
        rank, world, accumulate = self._shares()
        # A rank's batch is no larger than in training: what fits there fits here.
        return self._loader(split, StepSampler(self.plan(split, share=accumulate), rank, world, endless=False))

    def _shares(self) -> tuple[int, int, int]:
        """Rank, number of ranks, micro-batches a step."""
        if self.trainer is None:
            return 0, 1, 1
        return self.trainer.global_rank, self.trainer.world_size, self.trainer.accumulate_grad_batches

    def _loader(self, split: str, sampler: StepSampler) -> DataLoader:
        if self.collator is None:
            raise RuntimeError("connect(collator, seed) comes before loaders")
        device = self.trainer.strategy.root_device.type if self.trainer is not None else "cpu"
        workers = self.num_workers if self.num_workers is not None else 2 * (device != "cpu")
        return DataLoader(
            self.dataset(split),
            batch_sampler=sampler,
            collate_fn=self.collator,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
            # Its own: iter() draws a seed, which from the global generator would shift dropout after a resume.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _check_unchanged(source: HeldOut, fingerprint: str) -> None:
    """After reading: a cache of that name would hold neither the old text nor the new one."""
    if source.fingerprint() != fingerprint:
        raise UserError(f"{source.name} changed while it was read; start again when it is whole")


def digest(parts: Any) -> str:
    """A cache key of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def plain(value: Any) -> Any:
    """Mappings and lists of whatever kind a config library gives -> dict and list."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if value is None or isinstance(value, str | int | float | Path):
        return value
    return [plain(inner) for inner in value]
