"""Encoding by words is a short cut: the ids are the library's own, whatever the text and however often it repeats."""

import pickle
import random

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from lit_tfm.data import remembered
from lit_tfm.data.language_modeling import LanguageModelingData
from lit_tfm.data.remembered import Remembered, with_blanks
from lit_tfm.data.tokenizers import BPE, Tokenizer, Unigram, WordPiece

WORDS = ["the", "of", "and", "a", "river", "ran", "under", "old", "bridge", ",", ".", "Twice-told", "don't", ";", "\n"]
TEXT = " ".join(random.Random(1).choices(WORDS, k=40_000))
ANY_TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.text(st.sampled_from("ab \n\t\r\x1c\x85\xa0\u2028\u0301é.!Σς' 中▁[MASK]"), max_size=60),
    max_size=6,
)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    recipes = {
        "wordpiece": WordPiece(vocab_size=120),
        "cased": WordPiece(vocab_size=120, lowercase=False),
        "bpe": BPE(vocab_size=320),
        "lower bpe": BPE(vocab_size=320, lowercase=True),
        "unigram": Unigram(vocab_size=120),
    }
    return {name: recipe.train([TEXT]) for name, recipe in recipes.items()}


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer._inner.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["wordpiece", "cased", "bpe", "lower bpe", "unigram"])
@given(texts=ANY_TEXT)
@example(texts=["a  b   c\n\n d", " \n", "", "a \t b\x1c!\x1c c", "e \u0301 e\u0301", "ΑΣ ΑΣΣ", "\n\na"])
@settings(max_examples=40, deadline=None)
def test_ids_are_the_librarys_own(trained, name, texts):
    tokenizer = pickle.loads(pickle.dumps(trained[name]))  # one that remembers nothing yet
    texts = [*texts, *texts, "the end"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembered, "FEW_CHARS", 0)
        patch.setattr(remembered, "FEW_REPEATS", 0)
        for _ in range(2):  # and with all words known
            found = tokenizer._remembered.encode_batch(texts)
            assert [ids.tolist() for ids in found] == [plain(tokenizer, text) for text in texts]


@given(text=st.text(st.sampled_from("ab \n\t\x1c\xa0."), max_size=80))
@settings(max_examples=100, deadline=None)
def test_words_joined_are_the_text(text):
    assert "".join(with_blanks(text)) == text


def test_a_large_batch_goes_by_its_words_and_each_once(trained):
    tokenizer = pickle.loads(pickle.dumps(trained["bpe"]))
    texts, seen = [TEXT[:100_000], "", TEXT[100_000:]], []
    encode = tokenizer._remembered.encode
    tokenizer._remembered.encode = lambda words: seen.extend(words) or encode(words)
    for ids, text in zip(tokenizer.encode_batch(texts) + tokenizer.encode_batch(texts), texts * 2, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == plain(tokenizer, text)
    assert len(seen) == len(set(seen)) < 100


def test_words_that_do_not_repeat_are_left_to_the_library(trained):
    tokenizer = pickle.loads(pickle.dumps(trained["wordpiece"]))
    rare = " ".join(f"{number}x" for number in range(20_000))
    assert tokenizer._remembered.encode_batch([rare]) is None
    assert not tokenizer._remembered.numbers  # nor kept
    assert tokenizer.encode(rare).tolist() == plain(tokenizer, rare)


def test_memory_is_bounded(trained, monkeypatch):
    monkeypatch.setattr(remembered, "MOST_WORDS", 10)
    memory = Remembered(with_blanks, trained["bpe"]._encode)
    for letter in "abc":
        text = " ".join(f"{letter}{number % 50}" for number in range(30_000))
        assert memory.encode_batch([text])[0].tolist() == plain(trained["bpe"], text)
        assert len(memory.numbers) <= 51


def test_a_run_keeps_no_memory_of_the_words_it_stored(tmp_path) -> None:
    (tmp_path / "train.txt").write_text(TEXT * 2)
    data = LanguageModelingData(BPE(vocab_size=320), path=str(tmp_path / "train.txt"), cache_dir=tmp_path / "cache")
    data.prepare_data()
    assert not data.facts.tokenizer._remembered.numbers
    assert data.facts.tokenizer.encode(TEXT).tolist() == plain(data.facts.tokenizer, TEXT)


def foreign(normalizer=None, added: list | None = None, dropout: float | None = None) -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE({"a": 0, "Ġ": 1, "b": 2}, [], dropout=dropout))
    inner.normalizer, inner.pre_tokenizer = normalizer, pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_tokens(added or [])
    return Tokenizer(inner)


def test_foreign_tokenizers_that_look_at_more_than_a_word_are_left_alone():
    assert foreign()._remembered is not None
    assert foreign(normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]))._remembered is not None
    for odd in (normalizers.Strip(), normalizers.Replace("a b", "c"), normalizers.Prepend("▁")):
        assert foreign(odd)._remembered is None
    assert foreign(added=["a b"])._remembered is None  # looked for in the text as it stands
    assert foreign(dropout=0.1)._remembered is None
