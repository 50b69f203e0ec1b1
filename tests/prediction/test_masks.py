"""Filling masks: as in training, one mask beside another, in texts of any length."""

import pytest
import torch

from lit_tfm.evaluation.subject import open_subject
from lit_tfm.prediction.masks import Masks
from lit_tfm.prediction.rows import Row


@pytest.fixture
def masks(trained_runs) -> Masks:
    return Masks(open_subject(trained_runs("masked")), top=3)


@torch.no_grad()
def expected(masks: Masks, text: str, number: int) -> list[tuple[str, float]]:
    """The model's answer for one mask, without a batch: the separator, then the text's own tokens."""
    tokenizer, task = masks.tokenizer, masks.task
    ids = [tokenizer.sep_id, *tokenizer.encode(text, special=True).tolist()]
    place = [i for i, token in enumerate(ids) if token == tokenizer.mask_id][number]
    likely = task.head(task.model.hidden(torch.tensor([ids]))[0, place]).double().softmax(-1)
    order = [int(i) for i in likely.argsort(descending=True) if int(i) not in masks.never.tolist()][:3]
    return [(masks._word(i), float(likely[i])) for i in order]


def test_answers_do_not_depend_on_the_batch(masks) -> None:
    texts = [
        "The [MASK] statement",
        "a [MASK] b [MASK]",
        "[MASK]",
        "no mask",
        "it is a long text with a [MASK] in it .",
    ]
    found = masks.predict([Row({}, text) for text in texts])
    for text, prediction in zip(texts, found, strict=True):
        assert len(prediction.json["masks"]) == text.count("[MASK]")
        for number, options in enumerate(prediction.json["masks"]):
            pairs = [(option["token"], option["probability"]) for option in options]
            words, likely = zip(*pairs, strict=True)
            true = expected(masks, text, number)
            assert words == tuple(word for word, _ in true)
            assert likely == pytest.approx([p for _, p in true], abs=2e-6)


def test_marks_of_the_format_are_no_answer(masks) -> None:
    with torch.no_grad():
        masks.task.head.weight.zero_()  # all tokens alike: the first ones would be [PAD] and its like
    (found,) = masks.predict([Row({}, "the [MASK]")])
    assert not {option["token"] for option in found.json["masks"][0]} & {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}


def test_a_long_text_is_read_around_its_first_mask(masks) -> None:
    room = masks.max_length
    far = Row({}, f"{'the ' * (3 * room)}[MASK]{' is' * (3 * room)} [MASK]")
    (found,) = masks.predict([far])
    assert [len(options) for options in found.json["masks"]] == [3, 0]
    assert found.json["filled"].endswith("[MASK]")
    assert masks.noted == {f"cut to the {room} tokens around the first mask": 1, "with masks out of reach": 1}


def test_a_blank_before_a_mask_belongs_to_the_word_where_the_tokenizer_says_so(trained_runs, masks) -> None:
    assert masks.blank_joins
    assert masks._as_read(["the ", " sat"]) == ["the", " sat"]
    masks.blank_joins = False
    assert masks._as_read(["the ", " sat"]) == ["the ", " sat"]


def test_a_piece_goes_on_with_the_word_before_it(masks) -> None:
    piece = next(i for i in range(masks.tokenizer.vocab_size) if masks.tokenizer.token(i) == "##s")
    word = next(i for i in range(masks.tokenizer.vocab_size) if masks.tokenizer.token(i) == "the")
    assert masks._put("statement ", piece) == "statements"
    assert masks._put("in ", word) == "in the"
    assert masks._put("in ", None) == "in [MASK]"
