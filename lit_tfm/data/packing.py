"""Language-modelling examples out of a token store: blocks of the concatenated stream, or pieces of documents.

The store's N tokens are read as a ring: the last document is followed by the first. A training epoch starts at a
phase of its own, so that blocks begin elsewhere each time, and still every token is an input exactly once and the
number of blocks never changes. The stream's end and beginning may meet in one block; that is a border between
documents like any other.

`extra` tokens more than the block are handed out where the labels are the inputs shifted by one (causal models): they
overlap with the next block, so every token is also a label exactly once.

B blocks, T tokens of a block, D document starts inside the blocks.
"""

from functools import lru_cache

import numpy as np

from lit_tfm.data.sampling import Key
from lit_tfm.data.store import TokenStore

Example = dict[str, object]


class _Blocks:
    """What both kinds share: reading spans [start, start + length + extra) of the ring, with document numbers.

    limit: use only the first so many tokens of the store, which then close to a smaller ring.
    """

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        extra: int = 0,
        cross_documents: bool = False,
        limit: int | None = None,
    ) -> None:
        self.n_tokens = min(len(store.tokens), len(store.tokens) if limit is None else limit)
        if block_size < 1 or self.n_tokens < 1:
            raise ValueError(f"block_size {block_size}, {self.n_tokens} tokens")
        self.store, self.block_size, self.extra, self.cross_documents = store, block_size, extra, cross_documents

    @property
    def offsets(self) -> np.ndarray:
        """Borders of the documents, the last one cut where the stream is."""
        return np.unique(np.minimum(self.store.offsets, self.n_tokens))  # an empty document starts nowhere

    def __getitem__(self, key: Key) -> Example:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[Example]:
        """Examples of a batch at once: the cost is a few array operations, not Python work a token or a block."""
        starts, lengths = self.spans(keys)
        width = int(lengths.max()) + self.extra
        positions = starts[:, None] + np.arange(width)  # (B, T)
        tokens = np.asarray(self.store.tokens)[positions % self.n_tokens].astype(np.int64)
        documents = None if self.cross_documents else self._documents(starts, width)
        return [
            {
                "tokens": tokens[row, : length + self.extra],
                "document_ids": None if documents is None else documents[row, : length + self.extra],
                "key": key,
            }
            for row, (key, length) in enumerate(zip(keys, lengths.tolist(), strict=True))
        ]

    def _documents(self, starts: np.ndarray, width: int) -> np.ndarray:
        """Number of the document of each token (B, T), counted from 0 inside its block."""
        borders = self._borders
        first = np.searchsorted(borders, starts, side="right")  # a block's own first token opens no new document
        counts = np.searchsorted(borders, starts + width, side="left") - first  # (B,)
        rows = np.repeat(np.arange(len(starts)), counts)  # (D,)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # (D,) counts within its row
        documents = np.zeros((len(starts), width), dtype=np.int32)
        documents[rows, borders[first[rows] + nth] - starts[rows]] = 1
        return documents.cumsum(axis=1, dtype=np.int32)

    @property
    def _borders(self) -> np.ndarray:
        """Where documents start, continued past the end of the stream as far as a block may reach."""
        if not hasattr(self, "_ring"):
            reach = self.n_tokens + self.block_size + self.extra
            starts, turns = self.offsets[:-1], reach // self.n_tokens + 1
            beyond = [starts[starts < reach - turn * self.n_tokens] + turn * self.n_tokens for turn in range(1, turns)]
            self._ring = np.concatenate([starts, *beyond])
        return self._ring

    def __getstate__(self) -> dict:
        """Without what is derived from the store: a loader's worker makes its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_ring"}


class StreamBlocks(_Blocks):
    """Blocks of `block_size` tokens of the ring; only the last of an epoch is shorter.

    seed: gives each epoch its phase; None keeps phase 0 (validation).
    """

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        extra: int = 0,
        cross_documents: bool = False,
        limit: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(store, block_size, extra, cross_documents, limit)
        self.seed = seed

    def __len__(self) -> int:
        return -(-self.n_tokens // self.block_size)

    @property
    def wasted_tokens(self) -> int:
        """Padding an epoch needs when the last block is filled up to block_size."""
        return len(self) * self.block_size - self.n_tokens

    def phase(self, epoch: int) -> int:
        """Where in the stream the epoch's first block starts."""
        return 0 if self.seed is None else _phase(self.seed, epoch, min(self.block_size, self.n_tokens))

    def spans(self, keys: list[Key]) -> tuple[np.ndarray, np.ndarray]:
        """Start in the ring and length without the extra tokens, each (B,)."""
        index = np.array([key.index for key in keys], dtype=np.int64)
        phases = np.array([self.phase(key.epoch) for key in keys], dtype=np.int64)
        lengths = np.minimum(self.block_size, self.n_tokens - index * self.block_size)
        return phases + index * self.block_size, lengths


class DocumentBlocks(_Blocks):
    """Documents cut into pieces of `block_size` tokens, none of which reaches into the next document.

    The pieces have different lengths: batch them with a `BucketedPlan` over `lengths`. An extra token, which only
    serves as a label, is the start of what follows, so a model learns to end a document.
    """

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        extra: int = 0,
        cross_documents: bool = False,
        limit: int | None = None,
    ) -> None:
        super().__init__(store, block_size, extra, cross_documents, limit)
        offsets = self.offsets
        sizes = np.diff(offsets)
        pieces = -(-sizes // block_size)  # of each document
        nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self.starts = np.repeat(offsets[:-1], pieces) + nth * block_size
        self.lengths = np.minimum(block_size, np.repeat(offsets[1:], pieces) - self.starts)

    def __len__(self) -> int:
        return len(self.starts)

    def spans(self, keys: list[Key]) -> tuple[np.ndarray, np.ndarray]:
        """Start in the stream and length without the extra tokens, each (B,)."""
        index = np.array([key.index for key in keys], dtype=np.int64)
        return self.starts[index], self.lengths[index]


@lru_cache(maxsize=16)
def _phase(seed: int, epoch: int, below: int) -> int:
    return int(np.random.Generator(np.random.PCG64([seed, epoch, 1])).integers(below))
