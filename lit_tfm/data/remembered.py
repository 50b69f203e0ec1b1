"""Encoding by words: each different word of a corpus goes through the tokenizer once, its repeats are looked up.

Running text repeats itself (WikiText-2 has 33,278 different words among 2.1 million), and a tokenizer of ours never
puts a token across the blank after a word; so the ids of a text are those of its words, one after the other. What is
left for a repeated word is one dictionary look-up, done in C, and array operations.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

FEW_CHARS = 1 << 16  # a batch below this is encoded directly
FEW_REPEATS = 4  # below so many words for each new one, encoding the text itself is faster
MOST_WORDS = 1 << 20  # remembered at once: about 200 MB

# A word with the blanks before it: a new one begins at every blank or line end that follows something visible.
WITH_BLANKS = re.compile(r".[^ \n]*(?:(?<=\s)[ \n][^ \n]*)*", re.DOTALL)


def with_blanks(text: str) -> list[str]:
    """The text in words that keep the blanks before them; joined again they are the text."""
    return WITH_BLANKS.findall(text)


def without_blanks(text: str) -> list[str]:
    """The text in words, blanks and line ends dropped: for tokenizers that have no token for them."""
    return text.replace("\n", " ").split(" ")


class Remembered:
    """Ids of texts, by way of their words.

    `split` parts a text where `encode`, which gives the ids of each of many texts, would put no token across.
    """

    def __init__(self, split: Callable[[str], list[str]], encode: Callable[[list[str]], Sequence[np.ndarray]]) -> None:
        self.split, self.encode = split, encode
        self.forget()

    def forget(self) -> None:
        """As if no word had been seen."""
        self.numbers = _Numbers()
        self.ids = np.empty(0, dtype=np.int32)  # of all words, one after the other
        self.starts = self.lengths = np.empty(0, dtype=np.int64)  # of each word within them

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """One int32 array a text; None where the words repeat too little for this to pay."""
        if sum(map(len, texts)) < FEW_CHARS:
            return None
        parts = [self.split(text) for text in texts]
        counts = np.fromiter(map(len, parts), np.int64, len(parts))
        if len(self.numbers) > MOST_WORDS:
            self.forget()
        known = len(self.numbers)
        words = np.fromiter(map(self.numbers.__getitem__, chain.from_iterable(parts)), np.int64, counts.sum())
        if (len(self.numbers) - known) * FEW_REPEATS > len(words):
            self.numbers.drop_after(known)
            return None
        self._learn(known)
        lengths = self.lengths[words]
        ends = lengths.cumsum()
        places = np.arange(ends[-1]) + np.repeat(self.starts[words] - (ends - lengths), lengths)
        borders = np.concatenate([[0], ends])[counts.cumsum()[:-1]]
        return np.split(self.ids[places], borders)

    def _learn(self, known: int) -> None:
        """Encode the words that got their numbers since there were `known`."""
        new = self.encode(self.numbers.after(known))
        self.ids = np.concatenate([self.ids, *new], dtype=np.int32)
        self.lengths = np.concatenate([self.lengths, np.fromiter(map(len, new), np.int64, len(new))])
        self.starts = self.lengths.cumsum() - self.lengths


class _Numbers(dict):
    """Word -> its number; a word that is not there gets the next one."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number

    def after(self, number: int) -> list[str]:
        """The words from this number on; a dict keeps its order."""
        return list(self)[number:]

    def drop_after(self, number: int) -> None:
        for word in self.after(number):
            del self[word]
