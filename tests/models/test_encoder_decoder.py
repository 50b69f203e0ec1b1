import pytest
import torch

from lit_tfm.nn.cache import KVCache
from lit_tfm.nn.positions import SCHEMES

RICH = {"n_kv_heads": 2, "value_embeddings": True, "norm_weight": True, "bias": True}


@pytest.mark.parametrize("steps", [(1,) * 7, (4, 1, 2)])
@pytest.mark.parametrize("name", SCHEMES)
@torch.no_grad()
def test_cached_equals_uncached_and_the_memory_is_read_once(make, ids, name, steps):
    model, source, target = make("encoder_decoder", positions=name, n_decoder_layers=3, **RICH), ids(2, 5), ids(2, 7)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    memory = model.encode(source, mask)
    cache, pieces, at = KVCache(7), [], 0
    for step in steps:
        pieces.append(model.decode(target[:, at : at + step], memory, mask, cache=cache))
        memory = torch.full_like(memory, torch.nan)  # a second look at it would show
        at += step
    whole = model.hidden(source, target, mask)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_sides_may_differ_in_depth(make):
    model = make("encoder_decoder", n_layers=1, n_decoder_layers=3)
    assert (len(model.encoder.blocks), len(model.decoder.blocks)) == (1, 3)


def test_the_decoder_sees_the_whole_memory_and_only_its_document(make, ids):
    model, target = make("encoder_decoder"), ids(1, 4)
    memory = torch.randn(1, 6, 24, requires_grad=True)
    model.decode(target, memory)[0, 0].square().sum().backward()
    assert (memory.grad.abs().amax(-1) > 0).all()
    memory.grad = None
    documents, targets = torch.tensor([[0, 0, 1, 1, 1, 2]]), torch.tensor([[0, 0, 1, 3]])
    out = model.decode(target, memory, document_ids=documents, decoder_document_ids=targets)
    out[0, 2].square().sum().backward(retain_graph=True)
    assert (memory.grad.abs().amax(-1) > 0).tolist() == [[False, False, True, True, True, False]]
    memory.grad = None
    out[0, 3].square().sum().backward()  # its document has no memory
    assert memory.grad.abs().max() == 0
    assert out.isfinite().all()


def test_one_embedding_serves_both_sides(make):
    model = make("encoder_decoder")
    assert [name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)] == ["embedding"]


def test_t5_buckets_are_shared_by_layers_and_only_in_self_attention(make):
    model = make("encoder_decoder", positions="t5")
    assert [name for name, _ in model.named_parameters() if "positions" in name] == [
        "encoder.positions.weight",
        "decoder.positions.weight",
    ]
