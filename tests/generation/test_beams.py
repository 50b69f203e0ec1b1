"""Beam search by its own lights: it finds what trying everything finds, and its cache follows the beams.

That it is Hugging Face's search is told by test_huggingface.py.
"""

import itertools

import pytest
import torch

from lit_tfm.errors import UserError
from lit_tfm.generation.beams import Beams, beam_search

SCHEMES = ("none", "sinusoidal", "learned", "rotary", "alibi", "t5")


class Table:
    """A model of four tokens whose next token depends on the last one only; 3 ends."""

    LOGITS = torch.tensor([[0.0, 1.0, 0.5, -1.0], [0.3, -2.0, 1.0, 0.2], [1.5, 0.0, -0.5, 0.4], [0.0, 0.0, 0.0, 0.0]])

    def __call__(self, tokens):
        return self.LOGITS[tokens[:, -1]]

    def reorder(self, rows, memory=True):
        pass


def everything(start, longest, penalty):
    """All texts up to `longest` tokens, scored, best first."""
    likely = Table.LOGITS.log_softmax(-1)
    found = []
    for n in range(1, longest + 1):
        for text in itertools.product(range(4), repeat=n):
            whole = 3 not in text[:-1] and (text[-1] == 3 or n == longest)
            if whole:
                total = sum(float(likely[a, b]) for a, b in itertools.pairwise((start, *text)))
                found.append((total / n**penalty, list(text)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_search_wide_enough_finds_the_best(penalty):
    # As wide as the vocabulary allows, for the two tokens after which it still holds all beginnings.
    for start in (0, 1, 2):
        beams = Beams(2, penalty, "never")
        [texts] = beam_search(Table(), torch.tensor([[start]]), 2, beams, stop_id=3, keep=2)
        best = everything(start, 2, penalty)
        assert texts[0].tokens.tolist() in [text for _, text in best[:2]]
        scores = {tuple(text): score for score, text in best}
        for text in texts:
            assert text.score == pytest.approx(scores[tuple(text.tokens.tolist())], rel=1e-5)
        assert texts[0].score >= texts[1].score


def test_a_longer_text_wins_with_a_larger_penalty():
    lengths = []
    for penalty in (-2.0, 0.0, 3.0):
        [[text]] = beam_search(Table(), torch.tensor([[2]]), 8, Beams(2, penalty, "never"), stop_id=3)
        lengths.append(len(text.tokens))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


class Uncached:
    """Reads everything anew; its rows are reordered as plain tokens."""

    def __init__(self, logits_of):
        self.logits_of, self.tokens = logits_of, None

    def __call__(self, tokens):
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], dim=1)
        return self.logits_of(self.tokens)

    def reorder(self, rows, memory=True):
        self.tokens = self.tokens[rows]


class Compared:
    """Two readers that must say the same."""

    def __init__(self, one, other):
        self.one, self.other, self.calls, self.moved = one, other, 0, False

    def __call__(self, tokens):
        logits = self.one(tokens)
        torch.testing.assert_close(logits, self.other(tokens), atol=1e-4, rtol=1e-4)
        self.calls += 1
        return logits

    def reorder(self, rows, memory=True):
        self.moved |= not memory and not torch.equal(rows, torch.arange(len(rows)))
        self.one.reorder(rows, memory)
        self.other.reorder(rows, memory)


@pytest.mark.parametrize("positions", SCHEMES)
def test_the_cache_follows_the_beams(make, letters, positions):
    task = make(positions=positions)
    prompt = torch.tensor([[6, 9, 11, 8], [20, 7, 7, 12]])
    both = Compared(task.reader(), Uncached(lambda tokens: task.head(task.model.hidden(tokens)[:, -1])))
    beam_search(both, prompt, 12, Beams(4, early_stopping="never"))
    assert both.calls == 12
    assert both.moved  # or it was no test


@pytest.mark.parametrize("positions", SCHEMES)
def test_the_cache_of_an_encoder_decoder_follows_the_beams(make, letters, positions):
    task = make("encoder_decoder", positions=positions)
    inputs = {"input_ids": torch.randint(6, 30, (2, 9), generator=torch.Generator().manual_seed(0))}
    inputs["attention_mask"] = torch.arange(9) < torch.tensor([[9], [5]])
    with torch.no_grad():
        memory = task.model.encode(**inputs)

    def logits_of(tokens):
        share = len(tokens) // 2
        wide, mask = memory.repeat_interleave(share, 0), inputs["attention_mask"].repeat_interleave(share, 0)
        return task.head(task.model.decode(tokens, wide, mask)[:, -1])

    both = Compared(task.reader(inputs), Uncached(logits_of))
    beam_search(both, torch.full((2, 1), letters.pad_id), 10, Beams(3, early_stopping="never"))
    assert both.calls == 10
    assert both.moved


def test_a_text_may_end_otherwise(make):
    task, prompt = make(), torch.tensor([[6, 9, 11]])
    [plain] = beam_search(task.reader(), prompt, 8, Beams(3), keep=3)
    third = plain[0].tokens[2]
    [texts] = beam_search(task.reader(), prompt, 8, Beams(3), keep=3, ended=lambda text, p: text[-1] == int(third))
    assert any(len(text.tokens) < 8 and text.tokens[-1] == third for text in texts)
    assert all(third not in text.tokens[:-1] for text in texts)


def test_impossible_settings(make):
    for options in ({"width": 0}, {"length_penalty": float("nan")}, {"early_stopping": "soon"}):
        with pytest.raises(UserError):
            Beams(**options)
    with pytest.raises(UserError, match="2 beams are possible"):
        beam_search(Table(), torch.tensor([[0]]), 3, Beams(3))
