"""The chunked loss: the same sums and gradients as logits, softmax and autograd."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.nn import products
from lit_tfm.nn import vocabulary_loss as module
from lit_tfm.nn.heads import LMHead
from lit_tfm.nn.vocabulary_loss import IGNORED, vocabulary_loss


def reference(hidden, weight, labels, bias, softcap, smoothing):
    logits = F.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return [
        F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=s)
        for s in (0.0, smoothing)
    ]


@given(
    rows=st.integers(1, 150),
    words=st.integers(2, 40),
    softcap=st.sampled_from([None, 2.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    biased=st.booleans(),
    way=st.sampled_from([module._by_passes, module._by_elements]),
)
def test_sums_and_gradients_are_those_of_autograd(rows, words, softcap, smoothing, ignored, biased, way) -> None:
    random = torch.Generator().manual_seed(rows * words)
    kinds = [(rows, 6), (words, 6), (words,)]
    values = [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in kinds]
    hidden, weight, bias = values[0], values[1], values[2] if biased else None
    labels = torch.randint(words, (rows,), generator=random)
    labels[torch.rand(rows, generator=random) < ignored] = IGNORED
    with mock.patch.object(module, "_by_passes", way):
        loss, objective = vocabulary_loss(
            hidden, weight, labels, bias, softcap=softcap, smoothing=smoothing, chunk=1
        )  # 64 rows a chunk
    expected = reference(hidden, weight, labels, bias, softcap, smoothing)
    torch.testing.assert_close(torch.stack([loss, objective]), torch.stack(expected).float(), rtol=1e-5, atol=1e-5)
    learnt = [value for value in (hidden, weight, bias) if value is not None]
    found = torch.autograd.grad(0.5 * objective, learnt)
    for ours, theirs in zip(found, torch.autograd.grad(0.5 * expected[1], learnt), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_tied_weight_gets_both_gradients_and_a_frozen_one_none() -> None:
    embedding = torch.nn.Embedding(11, 8)
    head, labels = LMHead(8, 11, tied=embedding), torch.tensor([3, 4, IGNORED])
    head.losses(embedding(torch.tensor([1, 2, 3])), labels)[1].backward()
    both = embedding.weight.grad.clone()
    embedding.zero_grad()
    F.cross_entropy(head(embedding(torch.tensor([1, 2, 3]))), labels, ignore_index=IGNORED, reduction="sum").backward()
    torch.testing.assert_close(both, embedding.weight.grad)
    embedding.requires_grad_(False)
    hidden = torch.randn(3, 8, requires_grad=True)
    head.losses(hidden, labels)[1].backward()
    assert hidden.grad is not None


def test_what_is_not_finite_stays_so() -> None:
    hidden, weight = torch.randn(70, 4, requires_grad=True), torch.randn(9, 4)
    with torch.no_grad():
        hidden[66, 0] = torch.nan
    loss, objective = vocabulary_loss(hidden, weight, torch.zeros(70, dtype=torch.long), chunk=1)
    assert loss.isnan()
    assert torch.autograd.grad(objective, hidden)[0][66].isnan().all()


def test_under_autocast_it_is_the_loss_of_float32_logits() -> None:
    head, hidden = LMHead(16, 50, softcap=15.0), torch.randn(80, 16, requires_grad=True)
    labels = torch.randint(50, (80,))
    with torch.autocast("cpu", torch.bfloat16):
        loss, objective = head.losses(hidden, labels)
        expected = F.cross_entropy(head(hidden), labels, reduction="sum")
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    ours, theirs = (torch.autograd.grad(x, [hidden, head.weight]) for x in (objective, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_many_chunks_in_bfloat16_are_as_near_as_autograd() -> None:
    """With every weight in bfloat16 (precision=bf16-true) a sum kept in it would soon take up nothing more."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.rand(4096, 8, generator=random) + 0.5  # of one sign: the sums grow
    weight = torch.randn(5, 8, generator=random) / 8
    labels = torch.randint(0, 2, (4096,), generator=random)

    def gradient(dtype: torch.dtype, loss) -> torch.Tensor:
        leaf = weight.to(torch.bfloat16).to(dtype).requires_grad_()
        loss(hidden.to(torch.bfloat16).to(dtype), leaf).backward()
        return leaf.grad.double()

    def plain(rows: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(
            F.linear(rows, leaf).to(torch.promote_types(leaf.dtype, torch.float32)), labels, reduction="sum"
        )

    true = gradient(torch.float64, plain)
    chunked = gradient(torch.bfloat16, lambda rows, leaf: vocabulary_loss(rows, leaf, labels, chunk=1)[1])
    off = [(found - true).norm() / true.norm() for found in (chunked, gradient(torch.bfloat16, plain))]
    assert off[0] < 2 * off[1]


def test_compiled_it_is_one_graph_for_all_numbers_of_rows(anew, monkeypatch) -> None:
    compiled = torch.compile(module._by_elements, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(module, "_compiled", lambda: compiled)
    head = LMHead(16, 50, softcap=15.0, compiled=True)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for rows in (64, 300, 2_000_000 // 50, 7, 129):  # whole chunks, and what is left of them
        hidden, labels = torch.randn(rows, 16, requires_grad=True), torch.randint(50, (rows,))
        head.losses(hidden, labels)[1].backward()
        ours, hidden.grad = hidden.grad, None
        F.cross_entropy(head(hidden), labels, reduction="sum").backward()
        torch.testing.assert_close(ours, hidden.grad)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2  # of one size, and of any


@pytest.mark.slow  # the real compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_as_without(anew, dtype) -> None:
    head, hidden = LMHead(16, 500, softcap=15.0, compiled=True).to(dtype), torch.randn(200, 16, dtype=dtype)
    labels = torch.where(torch.rand(200) < 0.1, IGNORED, torch.randint(500, (200,)))
    leaves = [hidden.requires_grad_(), head.weight]
    ours = head.losses(hidden, labels, 0.1)
    head.compiled = False
    expected = head.losses(hidden, labels, 0.1)
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected))
    found, wanted = (torch.autograd.grad(objective, leaves) for _, objective in (ours, expected))
    torch.testing.assert_close(found, wanted)


def test_memory_is_that_of_a_chunk() -> None:
    """What autograd keeps until the backward pass: gradients, but no logits."""
    hidden, weight = torch.randn(2000, 8, requires_grad=True), torch.randn(4000, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        vocabulary_loss(hidden, weight, torch.zeros(2000, dtype=torch.long))
    assert sum(kept) == hidden.numel() + weight.numel()


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("words", [40, 6])  # more, and fewer, than the width
def test_float32_by_either_library(monkeypatch, onednn, words) -> None:
    monkeypatch.setattr(products, "FASTER", onednn)
    monkeypatch.setattr(products, "LEAST", 1)
    hidden, weight = torch.randn(150, 20, requires_grad=True), torch.randn(words, 20, requires_grad=True)
    labels = torch.randint(words, (150,))
    _, objective = vocabulary_loss(hidden, weight, labels, softcap=2.0, chunk=1)
    expected = reference(hidden.double(), weight.double(), labels, None, 2.0, 0.0)[1]
    torch.testing.assert_close(objective, expected.float())
    ours, theirs = (torch.autograd.grad(x, [hidden, weight]) for x in (objective, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
