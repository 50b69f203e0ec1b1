"""Whole models by oneDNN and by MKL: small products, as the other tests have them, take only the second way."""

import pytest
import torch

from lit_tfm.nn import products
from lit_tfm.nn.heads import LMHead

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 2, "gated": True, "neighbours": 1}], ids=["plain", "grouped"])
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_losses_and_gradients_are_the_same(make, ids, monkeypatch, kind, options):
    calls, real = [], products._product
    monkeypatch.setattr(products, "_product", lambda *given: calls.append(given[0].shape) or real(*given))
    monkeypatch.setattr(products, "LEAST", 1)
    model = make(kind, d_model=32, d_ff=None, **options).train()
    head, labels = LMHead(32, 29), ids(2, 16).flatten()
    arguments = (ids(2, 24), ids(2, 16)) if kind == "encoder_decoder" else (ids(2, 16),)
    found = []
    for faster in (True, False):
        monkeypatch.setattr(products, "FASTER", faster)
        model.zero_grad(), head.zero_grad()
        loss = head.losses(model.hidden(*arguments).flatten(0, 1), labels)[1]
        loss.backward()
        parameters = [*model.named_parameters(), *head.named_parameters()]
        found.append({"loss": loss.detach(), **{name: p.grad for name, p in parameters if p.grad is not None}})
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    matrices = sum(p.ndim == 2 for p in model.parameters())
    assert len(calls) > 2 * matrices  # forward and back


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_compiled_blocks_go_by_onednn(make, ids, monkeypatch, kind):
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(products, "FASTER", True)
    torch.compiler.reset()
    model = make(kind, d_model=32, d_ff=None, gated=True).train()
    compiled = make(kind, d_model=32, d_ff=None, gated=True, compile=True).train()
    compiled.load_state_dict(model.state_dict())
    arguments = (ids(2, 24), ids(2, 16)) if kind == "encoder_decoder" else (ids(2, 16),)
    for each in (model, compiled):
        each.hidden(*arguments).square().sum().backward()
    for (name, one), (_, two) in zip(model.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4, msg=name)
    with torch.profiler.profile() as seen:
        compiled.hidden(*arguments).square().sum().backward()
    calls = sum(event.count for event in seen.key_averages() if event.key == "lit_tfm::product")
    matrices = sum(p.ndim == 2 for name, p in compiled.named_parameters() if ".blocks." in f".{name}")
    assert calls >= 3 * matrices
