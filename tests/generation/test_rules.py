"""Rules of what may be written next."""

import torch

from lit_tfm.generation.rules import History, RepetitionPenalty


def test_what_was_read_becomes_less_likely_and_padding_counts_for_nothing():
    logits = torch.tensor([[2.0, -1.0, 3.0, 0.5], [2.0, -1.0, 3.0, 0.5]])
    tokens = torch.tensor([[0, 1, 2], [0, 1, 1]])
    present = torch.tensor([[False, True], [True, True]])
    history = History(tokens, present, 2, torch.arange(2))
    assert RepetitionPenalty(2.0)(logits, history).tolist() == [[2.0, -2.0, 1.5, 0.5], [1.0, -2.0, 3.0, 0.5]]
    assert torch.equal(RepetitionPenalty(1.0)(logits, history), logits)
