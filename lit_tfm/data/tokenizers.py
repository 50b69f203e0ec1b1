"""Text to token ids and back: the recipes that make a tokenizer, and the `Tokenizer` everything else reads.

A recipe (`WordPiece`, `BPE`, `Unigram`, `Byte`, `Char`, `Pretrained`) is a small frozen dataclass that a yaml names;
its `fingerprint()` is part of the cache key and its `train(texts)` is deterministic: the same texts give the same
bytes, whatever the number of threads. Shape letters: V vocabulary.

Traps, met in tokenizers 0.23:
- `WordPieceTrainer` numbers the `##x` pieces in hash order, so two trainings differ: see `WordPiece._train`.
- `UnigramTrainer` never learns frequent words that are no part of another, and depends on threads: see `unigram.py`.
- One long text is split into words by one thread, slower the longer it is: `cut` parts it where no recipe
  of ours would put a token anyway.
- Text that happens to hold `[MASK]` must not become the mask: special tokens are not looked for in texts.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lit_tfm.data import unigram
from lit_tfm.data.remembered import Remembered, with_blanks, without_blanks
from lit_tfm.errors import UserError, nearest

log = logging.getLogger(__name__)

# Rust threads do not survive a fork (DataLoader workers). Saying "true" keeps the parent fast and silent, and the
# child is told to work alone; whoever has set the variable is left in peace.
if "TOKENIZERS_PARALLELISM" not in os.environ:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "cls": ("[CLS]", "<cls>", "<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"),
    "sep": ("[SEP]", "<sep>", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
}
UNSEEN = "\U0010fffd"  # a character of nobody's
HOLES = 1_000_000  # ids that stand for nothing, at most
PIECE_CHARS = 1 << 15  # a text longer than this is encoded in parts, which also lets several threads share it


class Tokenizer:
    """A `tokenizers.Tokenizer` with the ids of its special tokens by role; `None` where it has no such token.

    A vocabulary with a single end token (gpt2's `<|endoftext|>`) uses it for both `cls` and `sep`.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self._vocab = inner.get_vocab(with_added_tokens=True)
        # Pieces may leave holes in the numbering of a foreign file: rows of the embedding, not entries, are counted.
        self.vocab_size: int = max(self._vocab.values()) + 1
        if self.vocab_size > len(self._vocab) + HOLES:  # an embedding of so many rows would be made
            raise ValueError(f"{len(self._vocab):,} entries, and ids up to {self.vocab_size - 1:,}")
        found = {role: next((self._vocab[n] for n in names if n in self._vocab), None) for role, names in ROLES.items()}
        self.pad_id, self.unk_id, self.mask_id = found["pad"], found["unk"], found["mask"]
        self.cls_id = found["cls"] if found["cls"] is not None else found["sep"]
        self.sep_id = found["sep"] if found["sep"] is not None else found["cls"]
        self.sentinel_ids: list[int] = self._sentinels()
        self._spec = json.loads(inner.to_str())
        self._table = self._symbol_table()
        self._may_cut = self._cuttable()
        self._remembered = self._by_words()
        self.word_start = self._word_starts()

    # -- making, keeping ------------------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """A `tokenizer.json`, or a folder (a run, a download) that holds one."""
        path = Path(path).expanduser()
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.exists():
            near = nearest(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else ""
            raise UserError(f"tokenizer.path={path}: there is no such file{near}; give a tokenizer.json or its folder")
        try:
            made = cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
            made.encode(f"tried {UNSEEN}", special=True)  # a model may load, and fail at the first unknown word
            return made
        except Exception as error:  # the library raises a bare Exception
            why = " ".join(str(error).split())[:200]
            raise UserError(f"tokenizer.path={path}: not a tokenizer.json of the tokenizers library ({why})") from error

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`; the same tokenizer always gives the same bytes."""
        partial = Path(path).with_name(f".{Path(path).name}.partial")
        try:
            partial.write_text(self._inner.to_str(pretty=True), encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def __getstate__(self) -> dict:
        return {"json": self._inner.to_str()}

    def __setstate__(self, state: dict) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state["json"]))

    @property
    def hash(self) -> str:
        """16 hex digits that name everything about this tokenizer."""
        # The library reads back some numbers a hair off what it wrote: a copy of a copy must not look like another.
        spec = json.loads(self._inner.to_str(), parse_float=lambda number: round(float(number), 6))
        return hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]

    # -- text <-> ids ---------------------------------------------------------------------------------------------

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        """One int32 array a text; no special tokens are added.

        With `special=True` the special tokens that stand in the text by name (`the [MASK] sat`) become themselves,
        as a person at a prompt means them; otherwise they are text like any other.
        """
        if self._table is not None and not special:
            return [self._look_up(text) for text in texts]
        if self._remembered is not None and not special:
            ids = self._remembered.encode_batch(texts)
            if ids is not None:
                return ids
        return self._encode(texts, special)

    def forget(self) -> None:
        """Give back the memory of words that encoding much text has filled."""
        if self._remembered is not None:
            self._remembered.forget()

    def _encode(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        """By the library, long texts in parts."""
        pieces, owner = [], []
        for number, text in enumerate(texts):
            parts = [text] if special or not self._may_cut else list(cut(text))
            pieces += parts
            owner += [number] * len(parts)
        self._inner.encode_special_tokens = not special
        encoded = self._inner.encode_batch_fast(pieces, add_special_tokens=False)
        ids = [np.array(e.ids, dtype=np.int32) for e in encoded]
        if len(pieces) == len(texts):
            return ids
        first = np.searchsorted(owner, np.arange(len(texts) + 1))
        return [np.concatenate(ids[a:b]) for a, b in pairwise(first)]

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids (T,) of one text."""
        return self.encode_batch([text], special)[0]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids (T,); byte, char and byte-level BPE give back exactly what was encoded."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token(self, token_id: int) -> str:
        """The entry of the vocabulary, with its marks (`##ing`, `Ġthe`)."""
        return self._inner.id_to_token(int(token_id)) or f"<{int(token_id)}>"

    def id_of(self, token: str) -> int | None:
        """The id of an entry of the vocabulary, None where there is none."""
        return self._vocab.get(token)

    def continues_word(self, token_id: int) -> bool:
        """Whether this token goes on with the word before it (whole-word masking)."""
        return not self.word_start[int(token_id)]

    def require(self, *roles: str, task: str) -> None:
        """Raise a UserError unless there is a token for every one of `roles` (pad unk cls sep mask sentinels)."""
        have = {**{role: getattr(self, f"{role}_id") for role in ROLES}, "sentinels": self.sentinel_ids or None}
        missing = [role for role in roles if have[role] is None]
        if missing:
            names = ", ".join(
                f"{r} ({' or '.join(ROLES[r][:2]) if r in ROLES else '<extra_id_0> ...'})" for r in missing
            )
            cure = "tokenizer.sentinels=100" if missing == ["sentinels"] else "tokenizer=wordpiece"
            raise UserError(f"the tokenizer has no {names} token, which {task} needs; train one: {cure}")

    # -- what it is made of ---------------------------------------------------------------------------------------

    def _sentinels(self) -> list[int]:
        found = ((re.fullmatch(r"<extra_id_(\d+)>", token), i) for token, i in self._vocab.items())
        return [i for _, i in sorted((int(match[1]), i) for match, i in found if match)]

    def _symbol_table(self) -> np.ndarray | None:
        """Ids by byte or by code point, for vocabularies where every symbol is one token: no search is needed."""
        model = self._spec["model"]
        if model["type"] != "BPE" or model["merges"] or self._spec["normalizer"] is not None:
            return None
        pre = self._spec["pre_tokenizer"]
        if pre is None and self.unk_id is not None:
            points = {ord(token): i for token, i in model["vocab"].items() if len(token) == 1}
            table = np.full(max(points, default=0) + 2, self.unk_id, dtype=np.int32)
            table[list(points)] = list(points.values())
            return table
        level = pre is not None and pre["type"] == "ByteLevel" and not pre["use_regex"] and not pre["add_prefix_space"]
        if level and all(symbol in model["vocab"] for symbol in BYTE_SYMBOLS):
            return np.array([model["vocab"][symbol] for symbol in BYTE_SYMBOLS], dtype=np.int32)
        return None

    def _look_up(self, text: str) -> np.ndarray:
        if self._spec["pre_tokenizer"] is not None:
            return self._table[np.frombuffer(text.encode(), dtype=np.uint8)]
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        return self._table[np.minimum(points, len(self._table) - 1)]  # the last row is [UNK]

    def _by_words(self) -> Remembered | None:
        """A memory of words, for tokenizers whose ids of a text are surely those of its words one after the other."""
        alone = (None, "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents")
        normalizer, model = self._spec["normalizer"] or {"type": None}, self._spec["model"]
        parts = normalizer.get("normalizers", [normalizer])
        # An added token that is no special one may hold blanks, and it is looked for in the text as it stands.
        added = any(not entry["special"] for entry in self._spec["added_tokens"])
        if not self._may_cut or added or model.get("dropout") or any(part["type"] not in alone for part in parts):
            return None
        bert = [part["type"] for part in self._pre_tokenizers()] == ["BertPreTokenizer"]
        return Remembered(without_blanks if bert else with_blanks, self._encode)

    def _pre_tokenizers(self) -> list[dict]:
        """Those of the spec, sequences taken apart."""

        def kinds(part: dict | None) -> list[dict]:
            if part is None:
                return []
            return [k for inner in part["pretokenizers"] for k in kinds(inner)] if "pretokenizers" in part else [part]

        return kinds(self._spec["pre_tokenizer"])

    def _cuttable(self) -> bool:
        """Whether a blank after a word surely parts two tokens (see `cut`)."""
        pres = self._pre_tokenizers()
        level = [p["type"] == "ByteLevel" and p["use_regex"] and not p["add_prefix_space"] for p in pres]
        return (
            any(level)
            or any(p["type"] == "BertPreTokenizer" for p in pres)
            or (
                any(p["type"] == "Split" and p["pattern"] == {"String": "\n"} for p in pres)
                and all(p["type"] != "Metaspace" or p["prepend_scheme"] == "never" for p in pres)
            )
        )

    def _word_starts(self) -> np.ndarray:
        """(V,) bool. A word goes on with `##x`, or with a letter or digit not led by a blank."""
        starts = np.ones(self.vocab_size, dtype=bool)
        marked = any(token.startswith("##") for token in self._vocab)
        special = {entry["content"] for entry in self._spec["added_tokens"]}
        bytewise = '"ByteLevel"' in json.dumps([self._spec["pre_tokenizer"], self._spec["decoder"]])
        for token, i in self._vocab.items():
            if token in special or not token:
                continue
            if marked:
                starts[i] = not token.startswith("##")
            elif bytewise:
                # Ġ is the blank; a byte of 128 or more is part of a letter outside ASCII.
                first = BYTE_OF.get(token[0], 0)
                starts[i] = not (chr(first).isalnum() if first < 128 else True)
            else:
                starts[i] = not token[0].isalnum()
        return starts


def _byte_symbols() -> list[str]:
    """The printable stand-in of each byte (Radford et al. 2019, the GPT-2 code)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in set(plain)]
    stand_in = {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(moved)}
    return [stand_in[byte] for byte in range(256)]


BYTE_SYMBOLS = _byte_symbols()
BYTE_OF = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


LONG_WORD = 4096
LONG = re.compile(rf"\S{{{LONG_WORD}}}")
PART_END = re.compile(r"(?<=\S)[ \n]")


def cut(text: str, size: int = PIECE_CHARS) -> Iterator[str]:
    """The text in parts of about `size` characters, each ending between a word and the blank after it.

    There, no recipe of ours puts a token across: a word ends, and blanks go with what follows them (Ġ, ▁). Cutting
    after a line end would be wrong: byte-level BPE takes several of them at once. Joined again, the parts are the text.
    """
    start = 0
    while len(text) - start > size:
        found = PART_END.search(text, start + size)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _bearable(part: str) -> Iterator[str]:
    """The part for training, words of more than LONG_WORD characters in pieces.

    The library's trainers take the square of a word's length: one of 200,000 characters 9 s, one of 50 MB for ever.
    """
    if part.count(" ") * 16 > len(part):  # what is common is not looked at closely
        yield part
        return
    start = 0
    for word in LONG.finditer(part):
        yield part[start : word.end()]
        start = word.end()
    yield part[start:]


# -- recipes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What all recipes share. `path` is a tokenizer.json to use instead of training."""

    path: str | None = None
    vocab_size: int = 8192  # an upper limit: small texts give fewer
    lowercase: bool = False
    sentinels: int = 0  # <extra_id_0> ... for span corruption
    train_chars: int | None = 100_000_000  # at most so many characters are trained on, from the start of the texts

    version: ClassVar[int] = 1  # raised when training changes, so that caches are made anew

    def fingerprint(self) -> str:
        """Names the tokenizer that `train` would make of given texts; content, not place, for a file."""
        if self.path is not None:
            return hashlib.sha256(f"file {Tokenizer.from_file(self.path).hash}".encode()).hexdigest()
        parts = [type(self).__name__, self.version, tokenizers.__version__, asdict(self)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Train on the texts (each a document), or load `path`."""
        if self.path is not None:
            return Tokenizer.from_file(self.path)
        if self.vocab_size <= len(self.special):
            raise UserError(
                f"tokenizer.vocab_size={self.vocab_size}: {len(self.special)} entries are special tokens already; "
                "give a larger one, for example tokenizer.vocab_size=8192"
            )
        return Tokenizer(self._train(self._sample(texts)))

    @property
    def special(self) -> list[str]:
        return [*SPECIAL, *(f"<extra_id_{k}>" for k in range(self.sentinels))]

    def _train(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        raise NotImplementedError

    def _sample(self, texts: Iterable[str]) -> Iterator[str]:
        """Parts of the texts that threads can share, up to `train_chars`."""
        left = self.train_chars if self.train_chars is not None else float("inf")
        for text in texts:
            for part in cut(text):
                yield from _bearable(part)
                left -= len(part)
                if left <= 0:
                    log.info("the tokenizer is trained on the first %d characters", self.train_chars)
                    return

    def _finish(self, inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        inner.add_special_tokens(self.special)
        return inner


@dataclass(frozen=True)
class WordPiece(Recipe):
    """Words cut into pieces, continuations marked `##` (Schuster and Nakajima 2012; BERT's normaliser)."""

    lowercase: bool = True
    alphabet: int = 1000  # so many characters at most, the most frequent; the rest becomes [UNK]

    def _train(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        def blank(model: models.Model) -> tokenizers.Tokenizer:
            inner = tokenizers.Tokenizer(model)
            inner.normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
            inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            inner.decoder = decoders.WordPiece(cleanup=False)
            return inner

        inner = blank(models.WordPiece(unk_token="[UNK]"))
        parts = list(texts)
        # The trainer would number the `##x` in hash order; naming them as special tokens first fixes their place.
        alphabet, inside = self._symbols(parts, inner.normalizer)
        fixed = [*self.special, *(f"##{symbol}" for symbol in inside)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=self.vocab_size, special_tokens=fixed, initial_alphabet=alphabet,
            limit_alphabet=len(alphabet), show_progress=False,
        )  # fmt: skip
        inner.train_from_iterator(parts, trainer)
        return self._finish(blank(models.WordPiece(json.loads(inner.to_str())["model"]["vocab"], unk_token="[UNK]")))

    def _symbols(self, parts: list[str], normalizer: normalizers.Normalizer) -> tuple[list[str], list[str]]:
        """The alphabet after normalising, and those of it that stand inside words, both in code point order."""
        counts, inside = _code_points(parts)
        alphabet: dict[str, int] = {}
        within: set[str] = set()
        for point in np.flatnonzero(counts):
            for symbol in normalizer.normalize_str(chr(point)):
                if not symbol.isspace():
                    alphabet[symbol] = alphabet.get(symbol, 0) + int(counts[point])
                    if inside[point]:
                        within.add(symbol)
        kept = sorted(sorted(alphabet), key=lambda symbol: -alphabet[symbol])[: self.alphabet]
        return sorted(kept), sorted(within.intersection(kept))


def _code_points(parts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Count of each code point, and whether it ever follows something else than a plain blank."""
    counts = np.zeros(0x110000, dtype=np.int64)
    inside = np.zeros(0x110000, dtype=bool)
    blank = np.array([9, 10, 13, 32], dtype=np.uint32)
    for part in parts:
        points = np.frombuffer(part.encode("utf-32-le"), dtype=np.uint32)
        seen = np.bincount(points)
        counts[: len(seen)] += seen
        inside[points[1:][~np.isin(points[:-1], blank)]] = True
    return counts, inside


@dataclass(frozen=True)
class BPE(Recipe):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019): nothing is unknown, nothing lost."""

    def _train(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        if self.vocab_size < len(self.special) + 256:
            raise UserError(
                f"tokenizer.vocab_size={self.vocab_size}: byte-level BPE needs {len(self.special) + 256} or more "
                "(256 bytes and the special tokens); fewer is tokenizer=byte"
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.normalizer = normalizers.Lowercase() if self.lowercase else None
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size, special_tokens=self.special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=2,
        )  # fmt: skip
        inner.train_from_iterator(texts, trainer)
        return self._finish(inner)


@dataclass(frozen=True)
class Unigram(Recipe):
    """Pieces with probabilities, the likeliest cut wins (Kudo 2018, SentencePiece); blanks are part of words (`▁`)."""

    train_chars: int | None = 20_000_000

    def _train(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        if self.lowercase:
            lower = normalizers.Lowercase()
            texts = (lower.normalize_str(text) for text in texts)
        learnt = unigram.learn(texts, self.vocab_size - len(self.special))
        # Pieces that no text is to be cut into: `[MASK]` in a text is not the mask.
        pieces = [*((token, -1e4) for token in self.special), *learnt]
        inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=self.special.index("[UNK]")))
        inner.normalizer = normalizers.Lowercase() if self.lowercase else None
        inner.pre_tokenizer = unigram.pre_tokenizer()
        inner.decoder = decoders.Metaspace(prepend_scheme="never")
        return self._finish(inner)


@dataclass(frozen=True)
class Byte(Recipe):
    """Every byte of the UTF-8 text is a token: 256 and the special ones. Nothing is learnt."""

    vocab_size: int = 512

    def _train(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        symbols = {token: i for i, token in enumerate([*self.special, *BYTE_SYMBOLS])}
        inner = tokenizers.Tokenizer(models.BPE(symbols, []))
        inner.normalizer = normalizers.Lowercase() if self.lowercase else None
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        return self._finish(inner)

    def _sample(self, texts: Iterable[str]) -> Iterator[str]:
        return iter(())


@dataclass(frozen=True)
class Char(Recipe):
    """Every character of the training text is a token, by code point; others become [UNK]."""

    train_chars: int | None = None

    def _train(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        if self.lowercase:
            lower = normalizers.Lowercase()
            texts = (lower.normalize_str(text) for text in texts)
        counts, _ = _code_points(texts)
        room = self.vocab_size - len(self.special)
        # Stable sort: of equally frequent characters the lower code point stays.
        kept = np.argsort(-counts, kind="stable")[: min(room, np.count_nonzero(counts))]
        symbols = {token: i for i, token in enumerate([*self.special, *(chr(point) for point in sorted(kept))])}
        inner = tokenizers.Tokenizer(models.BPE(symbols, [], unk_token="[UNK]", fuse_unk=False))
        inner.normalizer = normalizers.Lowercase() if self.lowercase else None
        inner.decoder = decoders.Fuse()
        return self._finish(inner)


@dataclass(frozen=True)
class Pretrained(Recipe):
    """A tokenizer.json as it is, for example that of another run or of a published checkpoint."""

    def __post_init__(self) -> None:
        if self.path is None:
            raise UserError("tokenizer=pretrained needs the file: tokenizer.path=PATH/tokenizer.json")
