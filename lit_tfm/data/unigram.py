"""Learning the pieces of a Unigram tokenizer (Kudo 2018), deterministic and in seconds.

Why not `tokenizers.trainers.UnigramTrainer`: it looks for candidates in the list of different words, each once, so a
frequent word that is no part of another (`▁and`, `▁,`) is never one (31 % more tokens than BPE on WikiText-2); its
sums depend on the number of threads; and on unsplit lines it does not end within minutes. Here candidates are counted
in the running text, and expectation-maximization takes the likeliest cut of each word instead of all of them (Viterbi
training), which the library's own encoder finds fast.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

SPACE = "▁"
WORD = re.compile(rf"\n|[ {SPACE}]?[^ \n{SPACE}]+|[ {SPACE}]")
LONGEST = 16  # characters of a piece, as in SentencePiece
SEEDS = 4  # candidates for each piece wanted
WORDS = 100_000  # different words learnt from, the most frequent; the rest only gives characters
KEEP = 0.75  # share of the pieces that survives a round of pruning


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Lines and words apart, the blank before a word part of it; exactly what `WORD` finds."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )


def learn(texts: Iterable[str], size: int) -> list[tuple[str, float]]:
    """At most `size` pieces with their log probabilities, likeliest first. All characters are among them, unless
    they would be more than half of the pieces: then the most frequent."""
    words = Counter()
    for text in texts:
        words.update(WORD.findall(text))
    counts = Counter()
    for word, count in words.items():
        counts[word.replace(" ", SPACE)] += count
    if not counts:
        return []
    single = _characters(counts, max(size // 2, 1))
    counts = _largest(counts, WORDS)
    pieces = {**single, **_candidates(counts, SEEDS * size)}
    corpus = _Corpus(counts)
    while True:
        scores = _scores(corpus.uses(_scores(pieces)), single)
        scores = _scores(corpus.uses(scores), single)
        if len(scores) <= size:
            ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
            # Short decimals, that a file gives back exactly.
            return [(piece, round(score * 1024) / 1024) for piece, score in ranked]
        pieces = _pruned(scores, corpus.last, single, max(size, int(KEEP * len(scores))))


def _characters(words: Counter, most: int) -> dict[str, int]:
    counts = Counter()
    for word, count in words.items():
        for symbol in word:
            counts[symbol] += count
    return _largest(counts, most)


def _largest(counts: dict[str, int], most: int, weights: np.ndarray | None = None) -> dict[str, int]:
    """The `most` entries of greatest count (or weight), ties by name. Sorts only what may be among them."""
    names = list(counts)
    sizes = np.fromiter(counts.values(), dtype=np.int64, count=len(counts)) if weights is None else weights
    least = np.partition(sizes, len(sizes) - most)[len(sizes) - most] if len(sizes) > most else 0
    near = np.flatnonzero(sizes >= least).tolist()
    return {names[i]: counts[names[i]] for i in sorted(near, key=lambda i: (-sizes[i], names[i]))[:most]}


def _candidates(words: dict[str, int], most: int) -> dict[str, int]:
    """Substrings of words that occur twice or more, best by characters covered."""
    counts: dict[str, int] = {}
    for word, count in words.items():
        if count > 1:
            for start in range(len(word) - 1):
                for end in range(start + 2, min(len(word), start + LONGEST) + 1):
                    piece = word[start:end]
                    counts[piece] = counts.get(piece, 0) + count
    covered = np.fromiter((count * len(piece) for piece, count in counts.items()), dtype=np.int64, count=len(counts))
    return _largest(counts, most, covered)


def _scores(uses: dict[str, float], always: Iterable[str] = ()) -> dict[str, float]:
    """Log probabilities from counts; a piece that must stay counts as half a use at least."""
    uses = {**dict.fromkeys(always, 0.5), **uses}
    total = math.log(sum(uses.values()))
    return {piece: math.log(count) - total for piece, count in uses.items()}


def _pruned(scores: dict[str, float], uses: dict[str, int], always: dict, size: int) -> dict[str, float]:
    """The uses of the `size` pieces whose loss would cost the text most likelihood."""

    def loss(piece: str) -> float:
        if piece in always:
            return math.inf
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        other = max((scores[a] + scores[b] for a, b in halves if a in scores and b in scores), default=-1e3)
        return uses.get(piece, 0) * (scores[piece] - other)

    kept = sorted(scores, key=lambda piece: (-loss(piece), piece))[:size]
    return {piece: uses.get(piece, 0.5) for piece in kept}


class _Corpus:
    """Words with counts, cut by the likeliest pieces."""

    def __init__(self, words: dict[str, int]) -> None:
        by_count: dict[int, list[str]] = {}
        for word, count in sorted(words.items()):
            by_count.setdefault(count, []).append(word)
        # Words of one count in one text: an encoding each would cost more than the search itself.
        self.texts = [
            (count, "".join(part)) for count, part in by_count.items() for part in _in_groups(_separated(part), 2000)
        ]
        self.added = sum(count * sum(_needs_line_end(word) for word in part) for count, part in by_count.items())
        self.last: dict[str, int] = {}

    def uses(self, scores: dict[str, float]) -> dict[str, int]:
        """How often each piece is used; pieces that never are do not appear."""
        names = ["[UNK]", *scores]
        inner = Tokenizer(models.Unigram([("[UNK]", -100.0), *scores.items()], unk_id=0))
        inner.pre_tokenizer = pre_tokenizer()
        totals = np.zeros(len(names), dtype=np.int64)
        encoded = inner.encode_batch_fast([text for _, text in self.texts], add_special_tokens=False)
        for (count, _), encoding in zip(self.texts, encoded, strict=True):
            totals += count * np.bincount(encoding.ids, minlength=len(names))
        if "\n" in scores:
            totals[names.index("\n")] -= self.added
        self.last = {names[i]: int(totals[i]) for i in np.flatnonzero(totals) if i}
        return self.last


def _separated(words: list[str]) -> list[str]:
    """Words that the pre-tokenizer parts again when they are joined: line ends go between those led by no blank."""
    return ["\n" + word if _needs_line_end(word) else word for word in words]


def _needs_line_end(word: str) -> bool:
    return word[0] not in (SPACE, "\n")


def _in_groups(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))
