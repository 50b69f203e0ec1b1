import copy

import pytest
import torch
from torch import nn

from lit_tfm.nn.heads import ClassificationHead, LMHead


def test_a_tied_head_adds_no_parameter_and_follows_the_embedding():
    model = nn.ModuleDict({"embedding": nn.Embedding(11, 8)})
    model["head"] = LMHead(8, 11, tied=model["embedding"], zero_init=True)
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight"]
    assert list(model.state_dict()) == ["embedding.weight"]
    hidden = torch.randn(3, 8)
    torch.testing.assert_close(model["head"](hidden), hidden @ model["embedding"].weight.T)
    twin = copy.deepcopy(model)  # EMA does this: the copy's head must follow the copy's embedding
    nn.init.zeros_(twin["embedding"].weight)
    assert twin["head"](hidden).abs().max() == 0
    assert model["head"](hidden).abs().max() > 0
    model["head"](hidden).sum().backward()
    assert model["embedding"].weight.grad is not None


def test_an_untied_head_starts_at_zero_or_at_unit_logits():
    hidden = torch.randn(64, 256)
    assert LMHead(256, 50, zero_init=True)(hidden).abs().max() == 0
    assert LMHead(256, 50)(hidden).std().item() == pytest.approx(1.0, abs=0.1)
    assert LMHead(256, 50, init_std=0.5).weight.std().item() == pytest.approx(0.5, abs=0.05)


def test_softcap_and_bias():
    head, hidden = LMHead(8, 11, softcap=15.0, bias=True), 100 * torch.randn(3, 8)
    nn.init.normal_(head.bias)
    plain = hidden @ head.weight.T + head.bias
    assert plain.abs().max() > 15
    torch.testing.assert_close(head(hidden), 15 * torch.tanh(plain / 15))


def test_logits_are_float32_under_autocast():
    head = LMHead(8, 11)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.randn(3, 8)).dtype == torch.float32
        assert ClassificationHead(8, 3)(torch.randn(3, 8)).dtype == torch.float32


def test_classification_head():
    head = ClassificationHead(8, 3, dropout=0.5)
    pooled = torch.randn(4, 8)
    assert head(pooled).shape == (4, 3)
    assert not torch.equal(head(pooled), head(pooled))
    head.eval()
    torch.testing.assert_close(head(pooled), pooled @ head.linear.weight.T + head.linear.bias)
