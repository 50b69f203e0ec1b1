"""Text as it is written: whole characters, stop strings across tokens, nothing that a terminal obeys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.data.tokenizers import BPE, Byte, Char, Unigram, WordPiece
from lit_tfm.generation.text import WINDOW, Answer, StopStrings, TextStream, harmless

TEXT = "the naïve café reads 日本語 and 😀 emoji, unbelievable words in the reading rooms, reading and unreading\n"
TOKENIZERS = {
    "byte": Byte(),
    "bpe": BPE(vocab_size=320),
    "wordpiece": WordPiece(vocab_size=120),
    "unigram": Unigram(vocab_size=120),
    "char": Char(),
}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: recipe.train([TEXT * 20]) for name, recipe in TOKENIZERS.items()}


def streamed(tokenizer, ids, before=()):
    stream = TextStream(tokenizer.decode, before)
    return [*(stream.push(i) for i in ids), stream.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_are_the_text(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(TEXT * 8).tolist()
    assert len(ids) > 2 * WINDOW
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("at", [1, 7, 30])
def test_after_a_prompt_the_first_token_knows_what_stood_before(tokenizers, name, at):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(TEXT).tolist()
    whole, prompt = tokenizer.decode(ids), tokenizer.decode(ids[:at])
    if whole.startswith(prompt):  # else the prompt ends inside a character
        assert "".join(streamed(tokenizer, ids[at:], ids[:at])) == whole[len(prompt) :]


def test_a_character_of_several_tokens_comes_whole(tokenizers):
    tokenizer = tokenizers["byte"]
    pieces = streamed(tokenizer, tokenizer.encode("a😀b").tolist())
    assert pieces == ["a", "", "", "", "😀", "b", ""]
    assert streamed(tokenizer, tokenizer.encode("a😀").tolist()[:3])[-1] == "\ufffd"  # the rest never came


@given(st.lists(st.integers(0, 255), max_size=150))
def test_any_bytes_come_out_as_they_are_decoded(values):
    tokenizer = Byte().train(())
    first = int(tokenizer.encode("\0")[0])
    table = {byte: int(i) for byte, i in zip(range(128), tokenizer.encode("".join(map(chr, range(128)))), strict=True)}
    ids = [table.get(value, first + value) for value in values]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.text("ab\n", max_size=20), st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_ends_the_text_wherever_it_is_cut(text, stops):
    places = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(places)[1]] if places else text  # what is complete first ends the text
    for size in (1, 2, 5):
        stop = StopStrings(stops)
        out = "".join(stop.push(text[i : i + size]) for i in range(0, len(text), size)) + stop.flush()
        assert out == expected
        assert (stop.found is not None) == bool(places)


def test_only_what_may_become_a_stop_string_waits():
    stop = StopStrings(["\nYou:"])
    assert [stop.push(piece) for piece in ("Hi", "\n", "Yo", "ur", "\nYou", ":", "more")] == [
        "Hi", "", "", "\nYour", "", "", ""]  # fmt: skip


def test_an_answer_ends_once(tokenizers):
    tokenizer, heard = tokenizers["byte"], []
    answer = Answer(tokenizer.decode, (), ["c"], tokenizer.sep_id, heard.append)
    for token in tokenizer.encode("ab cd").tolist():
        answer.push(token)
    answer.close("tokens")
    assert (answer.text, answer.ended, "".join(heard)) == ("ab ", "stop", "ab ")
    assert len(answer.ids) == 4
    answer = Answer(tokenizer.decode, (), ["bx"], tokenizer.sep_id)
    for token in [*tokenizer.encode("ab").tolist(), tokenizer.sep_id]:
        answer.push(token)
    assert (answer.text, answer.ended) == ("ab", "end")  # what waited for a stop string is not lost


def test_a_terminal_gets_nothing_to_obey():
    bad = "\x1b[2J\x1b]0;title\x07\x9b31m\x00\x08\r\x7f\u202e\u2066\u200b\ufeff\u2028"
    shown = harmless(f"a{bad}b")
    assert shown.isprintable()
    assert shown.startswith("a\\x1b[2J\\x1b]0;title\\x07")
    assert harmless("lines\nand\ttabs, é 日本 😀 👩\u200d👩") == "lines\nand\ttabs, é 日本 😀 👩\u200d👩"
    assert harmless("one\r\ntwo") == "one\ntwo"
