"""Requests carried out: what a prompt gets does not depend on those beside it; blanks, samples, positions, mistakes."""

import math

import pytest

from lit_tfm.data.tokenizers import BPE, WordPiece
from lit_tfm.errors import UserError
from lit_tfm.generation.request import Request
from lit_tfm.generation.write import Writer

PROMPTS = ["a", "the quick brown fox", "x y z", "the quick brown fox", "zz, a b c d e f"]
REQUESTS = [
    Request(greedy=True, max_new_tokens=15),
    Request(seed=4, max_new_tokens=15, num_samples=3),
    Request(temperature=1.2, top_p=0.9, repetition_penalty=1.5, max_new_tokens=12),
    Request(beams=3, num_samples=2, max_new_tokens=8),
    Request(beams=2, repetition_penalty=1.5, max_new_tokens=8, stops=("a",)),
    Request(greedy=True, stops=("q", "e f"), max_new_tokens=15),
    Request(greedy=True, max_new_tokens=39),  # the longer prompts leave no room for so many
    Request(seed=1, max_new_tokens=70, slide=True),
]


def said(answers):
    return [[(answer.ids, answer.text, answer.ended) for answer in some] for some in answers]


@pytest.mark.parametrize("request_", REQUESTS, ids=[str(i) for i in range(len(REQUESTS))])
@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
def test_each_prompt_gets_what_it_would_get_alone(make, request_, positions):
    writer = Writer(make(positions=positions), request_)
    questions = [writer.task.question(prompt) for prompt in PROMPTS]
    together = said(writer.write(questions))
    assert together == [said(writer.write([question]))[0] for question in questions]
    assert together[1] == together[3]
    assert len({str(row) for row in together}) >= 3  # and prompts matter


@pytest.mark.parametrize("request_", REQUESTS[:4], ids=["greedy", "samples", "penalty", "beams"])
def test_each_text_to_fill_gets_what_it_would_get_alone(make, request_):
    writer = Writer(make("encoder_decoder"), request_)
    texts = ["the ___ fox", "a b ___ d ___, f g h ___", "no blank", "___", "the <extra_id_0> fox"]
    questions = [writer.task.question(text) for text in texts]
    together = writer.write(questions)
    for question, some in zip(questions, together, strict=True):
        assert said([some]) == said(writer.write([question]))
    assert together[0][0].text == together[4][0].text


def test_samples_differ_and_seeds_and_turns_do(make):
    task = make()
    question = task.question("the ")

    def texts(turn=0, **options):
        [some] = Writer(task, Request(max_new_tokens=20, **options)).write([question], turn=turn)
        return [answer.text for answer in some]

    assert len(set(texts(num_samples=4))) == 4
    assert texts(num_samples=4)[:2] == texts(num_samples=2)
    assert texts(seed=1) != texts(seed=2)
    assert texts(turn=1) != texts(turn=0)
    assert texts() == texts()


def test_the_text_is_heard_while_it_is_written(make):
    writer, heard = Writer(make(), Request(max_new_tokens=20, greedy=True)), []
    [[answer]] = writer.write([writer.task.question("the ")], heard.append)
    assert "".join(heard) == answer.text
    assert len(heard) > 5


def test_positions_end_a_text_or_slide(make):
    task = make(max_length=16)
    question = task.question("abcdefgh")
    [[answer]] = Writer(task, Request(max_new_tokens=30, greedy=True)).write([question])
    assert (answer.ended, len(answer.ids)) == ("positions", 16 - 8 + 1)  # the last one is written, not read
    writer = Writer(task, Request(max_new_tokens=30, greedy=True, slide=True))
    [[slid]] = writer.write([question])
    assert (slid.ended, len(slid.ids)) == ("tokens", 30)
    assert slid.ids[:9] == answer.ids
    # From there on it is the text that goes on with the last half.
    half = (question.ids + answer.ids)[-8:]
    [[rest]] = Writer(task, Request(max_new_tokens=9, greedy=True)).write([type(question)("", half, goes_on=True)])
    assert slid.ids[9:18] == rest.ids


def test_scores_are_the_models_own(make):
    task = make()
    question = task.question("the quick")
    writer = Writer(task, Request(max_new_tokens=6, scores=True, temperature=0.5, top_k=3, repetition_penalty=1.3))
    [[answer]] = writer.write([question])
    import torch

    ids = torch.tensor([question.ids + answer.ids])
    with torch.no_grad():
        likely = task.head(task.model.hidden(ids)).log_softmax(-1)[0, len(question.ids) - 1 : -1]
    expected = likely.gather(1, torch.tensor(answer.ids)[:, None]).flatten()
    torch.testing.assert_close(torch.tensor(answer.likely), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("blanks", [1, 3, 5])
def test_blanks_are_filled_in_order_each_with_something(make, letters, beams, blanks):
    task = make("encoder_decoder", seed=blanks)
    question = task.question(" b ".join(["___"] * blanks))
    [[answer]] = Writer(task, Request(beams=beams, max_new_tokens=1 + 4 * blanks)).write([question])
    marks = [i for i, token in enumerate(answer.ids) if token in letters.sentinel_ids]
    assert [answer.ids[i] for i in marks] == letters.sentinel_ids[:blanks]
    assert answer.ended == "end"
    sizes = [b - a - 1 for a, b in zip(marks, [*marks[1:], len(answer.ids) - 1], strict=True)]
    assert all(1 <= size <= 3 for size in sizes)
    assert len(answer.fills) == blanks
    assert answer.text == "".join(f + p for f, p in zip(answer.fills, [" b "] * (blanks - 1) + [""], strict=True))


@pytest.mark.parametrize(
    ("recipe", "typed", "written", "filled"),
    [
        (WordPiece(vocab_size=90, sentinels=2), "The ___ fox ___.", " quick | jumps", "The quick fox jumps."),
        (BPE(vocab_size=400, sentinels=2), "the ___ fox ___.", " quick| jumps", "the quick fox jumps."),
        (BPE(vocab_size=400, sentinels=2), "___ fox___", "the quick| jumps", "the quick fox jumps"),
    ],
)
def test_a_filled_text_is_the_one_that_was_typed(make, recipe, typed, written, filled):
    tokenizer = recipe.train(["the quick fox jumps over the lazy dog. " * 50])
    task = make("encoder_decoder", tokenizer=tokenizer)
    question = task.question(typed)
    spans = [tokenizer.encode(span).tolist() for span in written.split("|")]
    ids = [i for k, span in enumerate(spans) for i in (tokenizer.sentinel_ids[k], *span)]
    text, fills = task.answer(question, [*ids, tokenizer.sep_id])
    assert text == filled
    assert [fill.strip() for fill in fills] == [span.strip() for span in written.split("|")]
    # What the model reads is what it was trained on: no blank of its own before a gap.
    gaps = [question.ids.index(sentinel) for sentinel in tokenizer.sentinel_ids]
    assert all(not tokenizer.decode(question.ids[:gap]).endswith(" ") for gap in gaps)


def test_prompts_that_can_not_be(make, letters):
    decoder, both = make(), make("encoder_decoder")
    with pytest.raises(UserError, match="41 tokens long, the model has 40 positions"):
        decoder.question("a" * 41)
    assert decoder.question("").ids == [letters.sep_id]  # a new document
    with pytest.raises(UserError, match="empty"):
        both.question("")
    with pytest.raises(UserError, match="6 blanks, and the model knows 5"):
        both.question("___ a " * 6)
    with pytest.raises(UserError, match="2 blanks need at least 5"):
        Writer(both, Request(max_new_tokens=4)).write([both.question("___ a ___")])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"temperature": math.nan}, "--temperature nan"),
        ({"temperature": math.inf}, "--temperature inf"),
        ({"top_p": 0.0}, "--top-p 0.95"),
        ({"top_p": 1.5}, "above 0, at most 1"),
        ({"min_p": -0.1}, "--min-p"),
        ({"top_k": -1}, "--top-k"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0"),
        ({"num_samples": 0}, "--num-samples 0"),
        ({"beams": 0}, "--beams 0"),
        ({"beams": 4, "temperature": 0.7}, "--temperature draws"),
        ({"beams": 4, "top_k": 5}, "leave one out"),
        ({"beams": 2, "num_samples": 3}, "type --beams 3"),
        ({"beams": 2, "slide": True}, "--slide"),
        ({"beams": 2, "length_penalty": math.nan}, "--length-penalty"),
        ({"length_penalty": 1.0}, "type e.g. --beams 4"),
        ({"early_stopping": True}, "type e.g. --beams 4"),
        ({"greedy": True, "top_p": 0.5}, "--greedy"),
        ({"greedy": True, "num_samples": 2}, "the same each time"),
        ({"temperature": 0.0, "num_samples": 2}, "the same each time"),
        ({"stops": ("",)}, "--stop"),
        ({"seed": -1}, "--seed"),
    ],
    ids=str,
)
def test_requests_that_can_not_be(options, said):
    with pytest.raises(UserError) as caught:
        Request(**options).check()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_said():
    assert Request().sampling() == {"temperature": 0.8, "top_k": 40, "seed": 0}
    assert Request().sampling(free=False) == {"temperature": 0.0, "seed": 0}
    assert Request(top_p=0.9).sampling() == {"temperature": 1.0, "top_p": 0.9, "seed": 0}
    assert Request(beams=3).sampling() == {"temperature": 0.0, "seed": 0}
    assert Request().new_tokens() == 128
    assert Request().new_tokens(blanks=3) == 31
    assert Request(max_new_tokens=9).new_tokens(blanks=3) == 9
