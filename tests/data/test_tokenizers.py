"""Tokenizers on real text: lossless where promised, trained alike twice, and clear about what they lack."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.data import tokenizers, unigram
from lit_tfm.data.tokenizers import BPE, SPECIAL, Byte, Char, Pretrained, Tokenizer, Unigram, WordPiece, cut
from lit_tfm.errors import UserError

# No downloads: the texts of these tests are the licence and docstrings that come with Python, and made-up strings.
TEXTS = [" ".join(doc.split(" ")) for module in (json, subprocess, hashlib, np) if (doc := module.__doc__)]
TEXTS += [Path(unigram.__file__).read_text(), Path(pickle.__file__).read_text()[:60_000]]
TRAINED = {
    "wordpiece": WordPiece(vocab_size=600),
    "bpe": BPE(vocab_size=600),
    "unigram": Unigram(vocab_size=600, sentinels=4),
    "byte": Byte(),
    "char": Char(),
}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {name: recipe.train(TEXTS) for name, recipe in TRAINED.items()}


@pytest.mark.parametrize("name", TRAINED)
def test_special_tokens_come_first_then_sentinels(trained, name):
    tokenizer = trained[name]
    assert [tokenizer.token(i) for i in range(5)] == list(SPECIAL)
    assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert tokenizer.sentinel_ids == list(range(5, 5 + TRAINED[name].sentinels))
    assert tokenizer.vocab_size <= TRAINED[name].vocab_size
    assert sorted(tokenizer._vocab.values()) == list(range(tokenizer.vocab_size))


@pytest.mark.parametrize("name", ["bpe", "byte"])
@given(text=ANY_TEXT)
@settings(max_examples=60, deadline=None)
def test_bytewise_tokenizers_lose_nothing(trained, name, text):
    ids = trained[name].encode(text)
    assert trained[name].decode(ids) == text
    assert not np.any(ids == trained[name].unk_id)


@given(text=st.text(st.sampled_from(sorted(set("".join(TEXTS)) - {"▁"})), max_size=300))
@settings(max_examples=60, deadline=None)
def test_char_and_unigram_lose_nothing_of_known_characters(trained, text):
    for name in ("char", "unigram"):
        assert trained[name].decode(trained[name].encode(text)) == text


def test_unknown_characters_become_unk_one_by_one(trained):
    char = trained["char"]
    ids = char.encode("a\U0001f600\U0001f601b")
    assert ids.tolist() == [char.id_of("a"), char.unk_id, char.unk_id, char.id_of("b")]


@pytest.mark.parametrize("name", TRAINED)
@given(text=ANY_TEXT)
@settings(max_examples=40, deadline=None)
def test_encoding_is_the_librarys_own(trained, name, text):
    """The tables for byte and char, and the cutting of long texts, are short cuts: they change nothing."""
    tokenizer = trained[name]
    plain = tokenizer._inner.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text).tolist() == plain


@pytest.mark.parametrize("name", TRAINED)
def test_long_texts_encode_as_if_never_cut(trained, name):
    tokenizer, text = trained[name], "\n\n \n".join(TEXTS) * 3
    assert len(text) > 4 * (1 << 15)
    plain = np.array(tokenizer._inner.encode(text, add_special_tokens=False).ids)
    np.testing.assert_array_equal(tokenizer.encode(text), plain)
    mixed = ["", text, "short one", text[:40_000], ""]
    for ids, part in zip(tokenizer.encode_batch(mixed), mixed, strict=True):
        np.testing.assert_array_equal(ids, tokenizer._inner.encode(part, add_special_tokens=False).ids)


@given(text=st.text(st.sampled_from("ab \n\t\x1c\x85\u2028é."), max_size=400), size=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_cut_anywhere_changes_no_token(trained, text, size):
    parts = list(cut(text, size))
    assert "".join(parts) == text
    for name in ("wordpiece", "bpe", "unigram"):
        inner = trained[name]._inner
        whole = inner.encode(text, add_special_tokens=False).ids
        assert [i for part in parts for i in inner.encode(part, add_special_tokens=False).ids] == whole


@pytest.mark.parametrize("name", TRAINED)
def test_special_tokens_in_a_text_are_text_unless_asked_for(trained, name):
    tokenizer = trained[name]
    text = "the [MASK] is [PAD] <extra_id_0> [SEP]"
    special = {0, 2, 3, 4, *tokenizer.sentinel_ids}
    assert not special & set(tokenizer.encode(text).tolist())
    assert tokenizer.mask_id in tokenizer.encode(text, special=True)
    assert not special & set(tokenizer.encode(text).tolist()), "asking once must not stick"


def test_training_gives_the_same_bytes_in_another_process_with_other_threads(trained, tmp_path):
    """Hash seeds of the library's maps differ between processes, sums between numbers of threads."""
    script = tmp_path / "again.py"
    recipes = {name: repr(recipe) for name, recipe in TRAINED.items()}
    script.write_text(
        "import json, sys\nfrom lit_tfm.data.tokenizers import *\n"
        f"texts = json.load(open({str(tmp_path / 'texts.json')!r}))\nrecipes = {recipes!r}\n"
        "print(json.dumps({name: eval(recipe).train(iter(texts)).hash for name, recipe in recipes.items()}))"
    )
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    root = Path(__file__).parents[2]
    for threads in ("1", "3"):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {name: tokenizer.hash for name, tokenizer in trained.items()}


def test_unigram_knows_frequent_words_whole(trained):
    """The library's own trainer misses them: `and` is no part of another word here, and more frequent than most."""
    for word in ("▁and", "▁the", "▁in", "▁def"):
        assert trained["unigram"].id_of(word) is not None, word
    # Runs of blanks aside: byte-level BPE has tokens for the indents of the code.
    count = {name: len(trained[name].encode(" ".join(TEXTS[-1].split()))) for name in ("unigram", "bpe")}
    assert count["unigram"] < 1.1 * count["bpe"]


def test_unigram_words_are_those_of_its_pre_tokenizer():
    text = "a  b\n\n c▁d \n  e▁▁f"
    found = [word.replace(" ", "▁") for word in unigram.WORD.findall(text)]
    assert found == [piece for piece, _ in unigram.pre_tokenizer().pre_tokenize_str(text)]


def test_lower_casing_and_a_limited_alphabet():
    wordpiece = WordPiece(vocab_size=300, alphabet=30).train(TEXTS)
    assert wordpiece.encode("The").tolist() == wordpiece.encode("the").tolist()
    assert len([t for t in wordpiece._vocab if len(t) == 1]) <= 30
    for recipe in (BPE(vocab_size=300, lowercase=True), Char(lowercase=True), Unigram(vocab_size=300, lowercase=True)):
        tokenizer = recipe.train(TEXTS)
        assert tokenizer.decode(tokenizer.encode("The Cat")) == "the cat"
        assert tokenizer.id_of("T") is None or recipe.__class__ is BPE


def test_char_keeps_the_most_frequent_within_its_limit():
    tokenizer = Char(vocab_size=7).train(["aaabbc", "ab"])
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == [*SPECIAL, "a", "b"]


def test_train_chars_limits_what_is_read():
    def texts():
        yield "abc" * 10
        yield "xyz" * 10
        raise AssertionError("read on after enough")

    assert Char(train_chars=31).train(texts()).id_of("x") is not None


def test_word_starts():
    wordpiece = WordPiece(vocab_size=400).train(TEXTS)
    piece = next(i for i in range(wordpiece.vocab_size) if wordpiece.token(i).startswith("##"))
    assert wordpiece.continues_word(piece)
    assert not wordpiece.continues_word(wordpiece.mask_id)
    for name, blank in (("bpe", "Ġ"), ("unigram", "▁")):
        tokenizer = TRAINED[name].train(TEXTS)
        assert not tokenizer.continues_word(tokenizer.id_of(f"{blank}the"))
        assert tokenizer.continues_word(tokenizer.id_of("e"))
        assert not tokenizer.continues_word(tokenizer.id_of("."))
    char = TRAINED["char"].train(TEXTS)
    assert [not char.continues_word(int(i)) for i in char.encode("a b.")] == [False, True, False, True]


@pytest.mark.parametrize("name", TRAINED)
def test_saved_loaded_pickled_and_used_by_every_recipe(trained, name, tmp_path):
    tokenizer = trained[name]
    tokenizer.save(tmp_path / "tokenizer.json")
    sample = "The [MASK] sat,\non the mat."
    for other in (
        pickle.loads(pickle.dumps(tokenizer)),
        Tokenizer.from_file(tmp_path),
        replace(WordPiece(), path=str(tmp_path / "tokenizer.json")).train(()),
        Pretrained(path=str(tmp_path)).train(()),
    ):
        assert other.hash == tokenizer.hash
        assert other.encode(sample).tolist() == tokenizer.encode(sample).tolist()
        np.testing.assert_array_equal(other.word_start, tokenizer.word_start)


def test_fingerprints_name_the_content(tmp_path, trained):
    recipes = [*TRAINED.values(), BPE(vocab_size=601), BPE(vocab_size=600, lowercase=True), Unigram(vocab_size=600)]
    assert len({recipe.fingerprint() for recipe in recipes}) == len(recipes)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        trained["bpe"].save(tmp_path / folder / "tokenizer.json")
    first, second = (Pretrained(path=str(tmp_path / folder)).fingerprint() for folder in ("a", "b"))
    assert first == second
    trained["char"].save(tmp_path / "b" / "tokenizer.json")
    assert Pretrained(path=str(tmp_path / "b")).fingerprint() != first


def test_a_single_end_token_serves_both_ends(tmp_path):
    """gpt2's vocabulary: <|endoftext|> and nothing else."""
    spec = json.loads(BPE(vocab_size=300).train(TEXTS)._inner.to_str())
    spec["model"]["vocab"] = {t: i for t, i in spec["model"]["vocab"].items() if t not in SPECIAL}
    spec["model"]["vocab"]["<|endoftext|>"] = 300
    spec["added_tokens"] = [dict(spec["added_tokens"][0], id=300, content="<|endoftext|>")]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.from_file(tmp_path)
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id) == (300, 300, None, None)
    assert tokenizer.vocab_size == 301
    with pytest.raises(UserError, match=r"no mask \(\[MASK\] or <mask>\) token, which masked_lm needs"):
        tokenizer.require("sep", "mask", task="masked_lm")


def test_require_names_the_cure(trained):
    trained["unigram"].require("pad", "mask", "sentinels", task="span_corruption")
    with pytest.raises(UserError, match=r"tokenizer.sentinels=100"):
        trained["bpe"].require("sentinels", task="span_corruption")


@pytest.mark.parametrize(
    ("recipe", "content", "told"),
    [
        (lambda p: BPE(path=f"{p}/tokeniser.json"), b"", r"no such file, did you mean 'tokenizer.json'\?"),
        (lambda p: Pretrained(path=f"{p}/tokenizer.json"), b"{", "not a tokenizer.json"),
        (lambda p: Pretrained(path=f"{p}/tokenizer.json"), b"\xff\xfe", "not a tokenizer.json"),
        (lambda p: Pretrained(), b"", "tokenizer.path="),
        (lambda p: WordPiece(vocab_size=5), b"", "vocab_size=5: 5 entries are special"),
        (lambda p: BPE(vocab_size=200), b"", "needs 261 or more"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, recipe, content, told):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        recipe(tmp_path).train(TEXTS)
    assert "\n" not in str(caught.value)


def test_no_warning_and_no_deadlock_in_forked_workers(tmp_path):
    """tokenizers warns, or hangs, when a process that used its threads forks. Loaders fork."""
    script = tmp_path / "fork.py"
    script.write_text(
        "import os, sys\nfrom lit_tfm.data.tokenizers import Char, BPE\n"
        "t = BPE(vocab_size=300).train(['some text of words ' * 50] * 40)\n"
        "t.encode_batch(['a b c'] * 100)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert len(t.encode_batch(['some text'] * 500)) == 500\n"
        "    os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("recipe", [WordPiece, BPE, Unigram, Char])
def test_a_word_as_long_as_a_file_can_be_trained_on(recipe):
    """The library's trainers would take the square of its length: 9 s of a core for 200,000 characters."""
    began = time.process_time()
    made = recipe(vocab_size=300).train(["abcdefghij" * 40_000, "and others"])
    assert time.process_time() - began < 9
    assert len(made.encode("abcdefghij" * 40_000)) > 0


def test_only_words_of_absurd_length_are_parted_for_training():
    text = "a few words\n" * 10 + "x" * 9000 + " " + "y" * 4095 + " and more"
    parts = list(tokenizers._bearable(text))
    assert "".join(parts) == text
    assert [len(max(part.split(), key=len)) for part in parts] == [4096, 4096, 4095]
    assert list(tokenizers._bearable("a few words " * 500)) == ["a few words " * 500]
