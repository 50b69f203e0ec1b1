"""Splits a source lacks, cut off its training split. Always the same cut, whatever the run's seed: trials compare."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lit_tfm.data.sources.source import Source
from lit_tfm.errors import UserError


class HeldOut:
    """A source in which every split named in `holdout` exists; `Source` in every other respect.

    holdout: split -> share of the training split (below 1) or number of items (documents or rows). A split the source
    has itself is left alone. A source with one split only is all training split, whatever that split is called.
    """

    def __init__(self, source: Source, holdout: dict[str, float] | None) -> None:
        own = source.splits()
        self.source, self.name, self.labels = source, source.name, source.labels
        self._training = own[0] if len(own) == 1 else "train"
        self._own = ["train"] if len(own) == 1 else own
        if "train" not in self._own:
            raise UserError(f"{self.name} has no training split, only {', '.join(own)}; name a file train.*")
        for split, amount in (holdout or {}).items():
            if split not in ("validation", "test"):
                raise UserError(f"data.holdout.{split}: only validation and test can be held out")
            if amount and amount >= 1 and amount != int(amount):
                raise UserError(
                    f"data.holdout.{split}={amount}: type a share below 1, e.g. 0.1, or a whole number of items"
                )
        self.cuts = {k: v for k, v in (holdout or {}).items() if v and k not in self._own}
        self._items: dict[tuple[str, str], list] = {}

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def splits(self) -> list[str]:
        return [split for split in ("train", "validation", "test") if split in self._own or split in self.cuts]

    def key(self, split: str) -> list[Any]:
        """What tells this split's content apart, beside the fingerprint."""
        cut_off = {} if split in self._own and split != "train" else dict(sorted(self.cuts.items()))
        return [split, self._training, cut_off]

    def documents(self, split: str) -> Iterator[str]:
        """Texts of a split."""
        return self._read(split, "documents")

    def rows(self, split: str) -> Iterator[dict]:
        """Rows of a split."""
        return self._read(split, "rows")

    def _read(self, split: str, kind: str) -> Iterator:
        read = getattr(self.source, kind)
        if split in self._own and (split != "train" or not self.cuts):
            yield from read(self._training if split == "train" else split)
            return
        if (kind, split) not in self._items:
            items = list(read(self._training))
            divide = divide_text if kind == "documents" and self._running(items) else divide_items
            self._items |= {(kind, name): part for name, part in divide(items, self.cuts).items()}
        yield from self._items[kind, split]

    def _running(self, texts: list[str]) -> bool:
        """Whether the end of the text is held out: documents drawn from a running text would be near copies of their
        neighbours, and of a handful none can be spared whole.
        """
        return self.source.running or len(texts) < 20


def divide_items(items: list, cuts: dict[str, float]) -> dict[str, list]:
    """Items drawn at random for each cut, the rest for training; order is kept."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(items))
    parts, taken = {}, 0
    for split, size in sorted(cuts.items()):
        count = amount(size, len(items))
        parts[split] = [items[i] for i in sorted(order[taken : taken + count])]
        taken += count
    _leave_some(taken, len(items), cuts, "items")
    return {**parts, "train": [items[i] for i in sorted(order[taken:])]}


def divide_text(texts: list[str], cuts: dict[str, float]) -> dict[str, list[str]]:
    """Running text cut by characters: training first, then validation, then test."""
    total = sum(len(text) for text in texts)
    sizes = {split: amount(cuts[split], total) for split in ("validation", "test") if split in cuts}
    _leave_some(sum(sizes.values()), total, cuts, "characters")
    parts, begin = {}, 0
    for split, size in {"train": total - sum(sizes.values()), **sizes}.items():
        parts[split] = list(_between(texts, begin, begin + size))
        begin += size
    return parts


def _between(texts: list[str], begin: int, end: int) -> Iterator[str]:
    """The characters [begin, end) of the texts set end to end, text by text."""
    for text in texts:
        if part := text[max(0, begin) : max(0, end)]:
            yield part
        begin, end = begin - len(text), end - len(text)


def amount(size: float, total: int) -> int:
    """A share (below 1) or a number -> a number of at least one."""
    return max(1, round(size * total) if size < 1 else int(size))


def _leave_some(taken: int, total: int, cuts: dict[str, float], what: str) -> None:
    if taken >= total:
        told = ", ".join(f"{split}: {size}" for split, size in cuts.items())
        raise UserError(
            f"data.holdout={{{told}}} leaves nothing to train on: there are {total:,} {what}; hold out less"
        )
