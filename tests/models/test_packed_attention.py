"""Packed documents by flex attention: what the dense mask gives, as far as torch has it on a CPU."""

import pytest
import torch

from lit_tfm.errors import UserError
from lit_tfm.nn.attention import attend, attend_explicit
from lit_tfm.nn.masks import document_mask, self_mask

DOCUMENTS = torch.tensor([[0] * 5 + [1] * 9 + [2] * 6, [0] * 12 + [1] * 5 + [-1] * 3])  # -1 is padding
SEEN = DOCUMENTS >= 0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seen", [None, SEEN])
@pytest.mark.parametrize("groups", [4, 2])
def test_it_is_the_dense_mask(causal, seen, groups) -> None:
    queries = torch.randn(2, 4, 20, 8)
    keys, values = torch.randn(2, 2, groups, 20, 8).unbind()
    dense = self_mask(20, 20, causal=causal, seen=seen, documents=DOCUMENTS)
    blocks = document_mask(DOCUMENTS, causal=causal, seen=seen)
    expected = attend(queries, keys, values, dense, scale=0.3)
    torch.testing.assert_close(attend(queries, keys, values, blocks, scale=0.3), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="weights"):
        attend_explicit(queries, keys, values, blocks)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_model_gives_the_same_either_way(make, ids, kind, monkeypatch) -> None:
    flex, dense = make(kind, packed_attention="flex"), make(kind)
    flex.load_state_dict(dense.state_dict())
    used = []
    monkeypatch.setattr("lit_tfm.models.stack.document_mask", lambda *a, **k: used.append(1) or document_mask(*a, **k))
    tokens, batch = ids(2, 20), {"attention_mask": SEEN, "document_ids": DOCUMENTS}
    with torch.no_grad():
        torch.testing.assert_close(flex.hidden(tokens, **batch), dense.hidden(tokens, **batch), atol=1e-5, rtol=1e-5)
    assert used
    loss = flex.train().hidden(tokens, **batch).sum()  # on a CPU training takes the dense mask: no backward otherwise
    loss.backward()
    assert len(used) == 1


def test_what_it_does_not_know_is_refused(make) -> None:
    for option in ({"dropout": 0.1}, {"positions": "alibi"}, {"positions": "t5"}):
        with pytest.raises(UserError, match="packed_attention=dense"):
            make("encoder", packed_attention="flex", **option)


def test_modes_of_compile_are_words(make) -> None:
    with pytest.raises(UserError, match="reduce-overhead or max-autotune"):
        make("encoder", compile="reduce_overhead")
    with pytest.raises(UserError, match=r"model\.compile=1; it can be false, true"):
        make("encoder", compile=1)  # equal to true, and no mode that torch knows
    assert make("encoder", compile="reduce-overhead")  # compiles when it is first called
