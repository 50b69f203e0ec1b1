import copy
import pickle
from types import MappingProxyType

import pytest
import torch
from torch import nn

from lit_tfm.errors import UserError
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.muon import muon
from lit_tfm.optim.orthogonal import COEFFICIENTS, orthogonalize


def direction(gradient):
    rows, columns = gradient.shape
    return orthogonalize(gradient[None], COEFFICIENTS["jordan"])[0] * max(1, rows / columns) ** 0.5


def run(shapes, steps=1, parts=MappingProxyType({}), **options):
    """A Muon step (or more) on matrices of these (name, shape) -> {name: (before, gradients, after)}."""
    torch.manual_seed(0)
    named = [(f"blocks.{name}.weight", nn.Parameter(torch.randn(shape))) for name, shape in shapes]
    before = [p.detach().clone() for _, p in named]
    gradients = [[torch.randn_like(p) for _ in range(steps)] for p in before]
    optimizer = muon(named, lr=0.1, **options)
    optimizer.parts = {f"blocks.{name}.weight": rows for name, rows in parts.items()}
    for step in range(steps):
        for (_, p), all_steps in zip(named, gradients, strict=True):
            p.grad = all_steps[step].clone()
        optimizer.step()
    names = [name for name, _ in shapes]
    after = [p.detach() for _, p in named]
    return dict(zip(names, zip(before, gradients, after, strict=True), strict=True))


def test_matrices_stepped_together_move_as_each_alone():
    shapes = [("a", (8, 8)), ("b", (32, 8)), ("c", (8, 32)), ("d", (8, 8)), ("e", (32, 8))]
    for before, (gradient,), after in run(shapes).values():
        torch.testing.assert_close(before - after, 0.1 * direction(gradient), atol=1e-5, rtol=0)


def test_momentum_is_nesterovs():
    (before, gradients, after) = run([("a", (6, 6))], steps=4, momentum=0.8)["a"]
    weight, average = before.clone(), torch.zeros(6, 6)
    for gradient in gradients:
        average = 0.8 * average + 0.2 * gradient
        weight -= 0.1 * direction(0.8 * average + 0.2 * gradient)
    torch.testing.assert_close(after, weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "parts"), [((24, 8), [4] * 6), ((40, 8), [8, 24, 8]), ((6, 8), [6])])
def test_parts_are_orthogonalised_by_themselves(shape, parts):
    before, (gradient,), after = run([("qkv", shape)], parts={"qkv": parts})["qkv"]
    expected = torch.cat([direction(part) for part in gradient.split(parts)])
    torch.testing.assert_close(before - after, 0.1 * expected, atol=1e-5, rtol=0)


def test_they_can_stay_together():
    before, (gradient,), after = run([("qkv", (24, 8))], parts={"qkv": [4] * 6}, split_fused=False)["qkv"]
    torch.testing.assert_close(before - after, 0.1 * direction(gradient), atol=1e-5, rtol=0)


def test_parts_have_to_cover_their_matrix():
    with pytest.raises(ValueError, match=r"parts of blocks\.qkv\.weight: \[4, 4\] rows, of 24"):
        run([("qkv", (24, 8))], parts={"qkv": [4, 4]})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_steps_as_the_original(copied):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(24, 8))
    optimizer = muon([("blocks.qkv.weight", weight)])
    optimizer.parts = {"blocks.qkv.weight": (4,) * 6}
    twin = copied(optimizer)
    other = twin.param_groups[0]["params"][0]
    weight.grad, other.grad = torch.ones_like(weight), torch.ones_like(weight)
    for each in (optimizer, twin):
        each.step()
    assert other is not weight
    assert torch.equal(other, weight)


def test_weight_decay_is_decoupled():
    plain = run([("a", (6, 6))])["a"]
    decayed = run([("a", (6, 6))], weight_decay=0.5)["a"]
    torch.testing.assert_close(decayed[2], plain[2] - 0.1 * 0.5 * plain[0])


def test_the_rest_is_adamw(tiny, train):
    """With the matrices held still, the other parameters move as AdamW moves them."""
    models = tiny(), tiny()
    for model in models:
        for name, p in model.named_parameters():
            p.requires_grad_("blocks" not in name or p.ndim < 2)
    train(models[0], muon(models[0].named_parameters(), adamw_lr=0.01, adamw_weight_decay=0.2, eps=1e-7), 15)
    train(models[1], adamw(models[1].named_parameters(), lr=0.01, weight_decay=0.2, eps=1e-7), 15)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_groups(tiny):
    groups = {g["name"]: g for g in muon(tiny().named_parameters(), lr=0.02, adamw_lr=0.003).param_groups}
    assert {name: group["initial_lr"] for name, group in groups.items()} == {
        "matrices": 0.02,
        "embeddings": 0.003,
        "vectors": 0.003,
    }
    assert groups["embeddings"]["param_names"] == ["embedding.weight", "head.weight"]
    assert all(p.ndim == 2 for p in groups["matrices"]["params"])


def test_learns_ill_conditioned_regression_faster_than_adamw():
    """Features of very different strength, mixed: every direction is learnt equally fast, the weak ones too."""

    def final_loss(make):
        torch.manual_seed(0)
        layer = nn.ModuleDict({"blocks": nn.Linear(16, 16, bias=False)})
        mix, _ = torch.linalg.qr(torch.randn(16, 16))
        x = torch.randn(256, 16) * torch.logspace(0, -2, 16) @ mix
        target = x @ torch.randn(16, 16)
        optimizer = make(layer.named_parameters())
        for step in range(100):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1 - step / 100)
            loss = (layer["blocks"](x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    best_adamw = min(final_loss(lambda named, lr=lr: adamw(named, lr=lr, weight_decay=0)) for lr in (0.03, 0.1, 0.3))
    assert min(final_loss(lambda named, lr=lr: muon(named, lr=lr)) for lr in (0.1, 0.3)) < 0.9 * best_adamw


def test_refuses_what_it_cannot_do(tiny):
    with pytest.raises(UserError, match="type optimizer=adamw"):
        muon(nn.LayerNorm(3).named_parameters())
    with pytest.raises(UserError, match=r"did you mean 'jordan'"):
        muon(tiny().named_parameters(), coefficients="jordna")
