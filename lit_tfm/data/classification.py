"""Labelled texts, one or two an example, in batches of similar length.

Letters: N examples, L labels.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lit_tfm.data.bucketing import BucketedPlan
from lit_tfm.data.facts import DataFacts, SplitStats
from lit_tfm.data.holdout import HeldOut
from lit_tfm.data.module import TextData, plain
from lit_tfm.data.sampling import Key, Plan
from lit_tfm.data.sources.columns import NUMBER, Column
from lit_tfm.data.store import TokenStore, write_texts
from lit_tfm.data.tokenizers import Recipe, Tokenizer
from lit_tfm.errors import UserError, nearest

log = logging.getLogger(__name__)
HIDDEN = -1  # code of a row whose label the source does not give


class LabelledTexts:
    """Examples {tokens, tokens_b, label, key} of a stored split.

    store:    documents i, or 2i and 2i + 1 where examples have two texts.
    labels:   (N,) class numbers or (N, L) 0/1.
    room:     tokens of both texts together, at most; the longer one is cut first.
    specials: tokens the collator adds to an example.
    """

    def __init__(self, store: TokenStore, labels: np.ndarray, room: int, specials: int) -> None:
        self.store, self.labels = store, labels
        self.pair = bool(store.meta["pair"])
        sizes = np.diff(store.offsets)
        first, second = (sizes[0::2], sizes[1::2]) if self.pair else (sizes, np.zeros_like(sizes))
        self.keep = np.minimum(first, np.maximum(room - second, (room + 1) // 2))  # (N,) tokens of the first text
        self.keep_b = np.minimum(second, room - self.keep)
        self.truncated = int((first + second > room).sum())
        self.lengths = self.keep + self.keep_b + specials  # as the collator pads them

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[dict[str, Any]]:
        index = np.array([key.index for key in keys], dtype=np.int64)
        first = self._texts(2 * index if self.pair else index, self.keep[index])
        second = self._texts(2 * index + 1, self.keep_b[index]) if self.pair else [None] * len(keys)
        labels = self.labels[index] if self.labels.ndim == 2 else self.labels[index].tolist()
        return [
            {"tokens": tokens, "tokens_b": tokens_b, "label": label, "key": key}
            for tokens, tokens_b, label, key in zip(first, second, labels, keys, strict=True)
        ]

    def _texts(self, documents: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """The beginnings of these documents, read at once."""
        ends = np.cumsum(lengths)
        begins = ends - lengths
        positions = np.arange(lengths.sum()) + np.repeat(self.store.offsets[documents] - begins, lengths)
        tokens = np.asarray(self.store.tokens)[positions].astype(np.int64)
        return [tokens[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


class ClassificationData(TextData):
    """Texts with one label each, or with several.

    max_length:   tokens of an example, special tokens included; longer ones are cut, and counted.
    batch_tokens: tokens of an optimizer step, padding included, over all ranks and micro-batches; batch_size bounds its
                  examples, instead or as well.
    text, text_b, label: columns of files, by name, or by position where there is no header (from 0); several text
                  columns are joined.
    labels:       names of the classes in order; a number n in the label column is labels[n - label_offset]. By default
                  the labels of the training split, numbers by size, words by the alphabet.
    label_separator: between the labels of an example that may have several; lists in jsonl and parquet need none.
    The rest: see TextData.
    """

    def __init__(
        self,
        tokenizer: Recipe,
        max_length: int = 128,
        batch_tokens: int | None = 2048,
        text_b: Column | list[Column] | None = None,
        label: Column | list[Column] = "label",
        labels: list[str] | None = None,
        label_offset: int = 0,
        label_separator: str | None = None,
        **options: Any,
    ) -> None:
        self.max_length = max_length
        self.classes: dict[str, np.ndarray] = {}
        self.known: DataFacts | None = None  # of the run to be evaluated: its labels, in its order
        super().__init__(tokenizer, batch_tokens=batch_tokens, **options)
        self.files |= {"text_b": plain(text_b), "label": plain(label), "labels": plain(labels)}
        self.files |= {"label_offset": label_offset, "label_separator": label_separator}

    def _check(self) -> None:
        super()._check()
        if self.max_length < 8:
            raise UserError(f"data.max_length={self.max_length}: must be 8 or more")

    # ---- storing --------------------------------------------------------------------------------------------------

    def texts(self, source: HeldOut, split: str) -> Iterator[str]:
        for row in source.rows(split):
            yield row["text"]
            if row["text_b"] is not None:
                yield row["text_b"]

    def text_layout(self) -> Any:
        return "rows"

    def layout(self) -> Any:
        return "rows"

    def build(self, folder: Path, source: HeldOut, split: str, tokenizer: Tokenizer) -> None:
        labels: list[str | list[str] | None] = []

        def texts(rows: Iterable[dict]) -> Iterator[str]:
            for row in rows:
                labels.append(row["label"])
                yield row["text"]
                if pair:
                    yield row["text_b"] or ""

        rows = source.rows(split)
        first = next(rows, None)
        pair = first is not None and first["text_b"] is not None
        write_texts(folder, texts(chain([first] * (first is not None), rows)), tokenizer, {"pair": pair})
        write_labels(folder, labels)

    def texts_an_example(self, split: str) -> int:
        return 1 + self.stores[split].meta["pair"]

    def prepare_splits(self, source: HeldOut, tokenizer: Tokenizer) -> None:
        super().prepare_splits(source, tokenizer)
        stored = {split: read_labels(store.folder) for split, store in self.stores.items()}
        if "test" in stored and (stored["test"][1] == HIDDEN).all():
            log.info("%s hides the labels of its test split: it is left out", source.name)
            del stored["test"], self.stores["test"]
        self.names = self.known.labels if self.known else source.labels or tuple(stored["train"][0])
        if len(self.names) < 2:
            raise UserError(
                f"the training split of {source.name} has one class only ({', '.join(self.names) or 'none'}); "
                "two are needed at least: check data.label"
            )
        self.multi_label = any(codes.ndim == 2 for _, codes in stored.values())
        if self.known:
            self.multi_label = self._same_kind(source.name)
        for split, (names, codes) in stored.items():
            self.classes[split] = self._numbered(names, codes, f"the {split} split of {source.name}")

    def _same_kind(self, name: str) -> bool:
        """Whether examples may have several labels. Raises UserError where they have and the run knows one only."""
        if self.multi_label and not self.known.multi_label:
            raise UserError(f"examples of {name} have several labels, and the run was trained to give one")
        return self.known.multi_label

    def _numbered(self, names: list[str], codes: np.ndarray, where: str) -> np.ndarray:
        """Stored codes, which count the split's own names -> class numbers (N,) or 0/1 (N, L)."""
        for name in names:
            if name not in self.names:
                lacks = "the run does not know" if self.known else "the training split lacks"
                raise UserError(
                    f"{where} has the label '{name}', which {lacks}"
                    f"{nearest(name, self.names)}; there is {', '.join(self.names)}"
                )
        if codes.ndim == 1 and (codes == HIDDEN).any():
            raise UserError(f"{where}: row {int(np.argmax(codes == HIDDEN)) + 1} has no label; check data.label")
        place = np.array([self.names.index(name) for name in names], dtype=np.int64)
        if not self.multi_label:
            return place[codes]
        table = np.zeros((len(codes), len(self.names)), dtype=np.int64)
        if codes.ndim == 1:
            table[np.arange(len(codes)), place[codes]] = 1
        else:
            table[:, place] = codes
        return table

    def make_facts(self, tokenizer: Tokenizer) -> DataFacts:
        splits = {split: self.stats(split) for split in self.stores}
        return DataFacts(tokenizer=tokenizer, splits=splits, labels=self.names, multi_label=self.multi_label)

    # ---- examples and batches -------------------------------------------------------------------------------------

    def make_dataset(self, split: str) -> LabelledTexts:
        store = self.stores[split]
        pair = store.meta["pair"]
        # Before a collator is connected: [cls] a [sep], or [cls] a [sep] b [sep].
        specials = 2 + pair if self.collator is None else self.collator.special_tokens(pair=pair)
        longest = min(self.max_length, getattr(self.collator, "max_length", self.max_length))
        return LabelledTexts(store, self.classes[split], longest - specials, specials)

    def make_plan(self, split: str, dataset: LabelledTexts, batch_size: int | None, batch_tokens: int | None) -> Plan:
        return BucketedPlan(
            dataset.lengths, self.seed, batch_tokens, batch_size, shuffle=split == "train", limit=self.limits[split]
        )

    def stats(self, split: str) -> SplitStats:
        store, dataset = self.stores[split], self.make_dataset(split)
        plan = self.make_plan(split, dataset, self.batch_size, self.batch_tokens)
        chosen = plan.samples if split == "train" else slice(None)
        return SplitStats(
            documents=len(dataset),
            tokens=int(dataset.lengths[chosen].sum()),
            bytes=store.meta["bytes"],
            words=store.meta["words"],
            wasted_tokens=plan.wasted_tokens(),
            examples=len(dataset.lengths[chosen]),
            unknown_tokens=store.meta["unknown"],
            truncated=dataset.truncated,
        )


def write_labels(folder: Path, labels: list[str | list[str] | None]) -> None:
    """`labels.npy`, (N,) codes or (N, L) 0/1, and `labels.json`, the names they count."""
    several = any(isinstance(label, list) for label in labels)
    lists = [label if isinstance(label, list) else [] if label is None else [label] for label in labels]
    names = in_order(set(chain.from_iterable(lists)))
    code = {name: i for i, name in enumerate(names)}
    if several:
        codes = np.zeros((len(lists), len(names)), dtype=np.uint8)
        for i, row in enumerate(lists):
            codes[i, [code[name] for name in row]] = 1
    else:
        codes = np.array([code[row[0]] if row else HIDDEN for row in lists], dtype=np.int32)
    np.save(folder / "labels.npy", codes)
    (folder / "labels.json").write_text(json.dumps(names), encoding="utf-8")


def read_labels(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names and codes, as written. Raises UserError where they are no longer."""
    try:
        names, codes = json.loads((folder / "labels.json").read_text(encoding="utf-8")), np.load(folder / "labels.npy")
        several = codes.ndim == 2 and codes.shape[1] == len(names)
        one = codes.ndim == 1 and codes.min(initial=0) >= HIDDEN and codes.max(initial=HIDDEN) < len(names)
        if codes.dtype.kind not in "iu" or not (several or one) or not all(isinstance(name, str) for name in names):
            raise ValueError("names and codes do not belong together")
    except Exception as error:  # whatever a reader stumbles over, the files are broken
        why = " ".join(str(error).split())[:90] or type(error).__name__
        raise UserError(f"the labels in {folder} can't be used ({why}); delete that folder and start again") from error
    return names, codes


def in_order(names: Iterable[str]) -> list[str]:
    """Numbers by size, anything else by the alphabet."""
    return sorted(names, key=lambda name: (0, int(name), name) if NUMBER.fullmatch(name) else (1, 0, name))
