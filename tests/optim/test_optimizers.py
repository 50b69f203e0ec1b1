"""What holds for every optimizer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_tfm.optim.adafactor import adafactor
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.lion import lion
from lit_tfm.optim.muon import muon

MAKERS = {"adamw": adamw, "adafactor": adafactor, "lion": lambda named: lion(named, lr=3e-3), "muon": muon}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
shapes = st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=5)


@every
def test_trains(make, tiny, train):
    model = tiny()
    losses = train(model, make(model.named_parameters()), 60)
    assert losses[-1] < 0.5 * losses[0]


@every
def test_resumes_bit_identically_from_plain_values(make, tiny, train, tmp_path):
    model = tiny()
    optimizer = make(model.named_parameters())
    train(model, optimizer, 4)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    expected = train(model, optimizer, 4)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again = tiny()
    again.load_state_dict(saved["model"])
    optimizer = make(again.named_parameters())
    optimizer.load_state_dict(saved["optimizer"])
    assert train(again, optimizer, 4) == expected
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@every
def test_state_is_numbered_by_place_in_the_model(make, tiny, train):
    model = tiny()
    optimizer = make(model.named_parameters())
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    parameters = list(model.parameters())
    assert sorted(number for group in state["param_groups"] for number in group["params"]) == list(
        range(len(parameters))
    )
    for group, packed in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for number, p in zip(packed["params"], group["params"], strict=True):
            assert parameters[number] is p
            assert state["state"][number] is optimizer.state[p]


@every
def test_groups_carry_their_peak_and_scale_with_it(make, tiny, train):
    model = tiny()
    optimizer = make(model.named_parameters())
    for group in optimizer.param_groups:
        assert group["initial_lr"] == group["lr"] > 0
        group["lr"] = 0.0
    before = [p.clone() for p in model.parameters()]
    train(model, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@every
@settings(max_examples=25, deadline=None)
@given(shapes=shapes, zero=st.booleans(), frozen=st.integers(-1, 4))
def test_takes_every_shape_and_stays_finite(make, shapes, zero, frozen):
    """Scalars, vectors, matrices and more; gradients of zero; parameters that get no gradient."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in [*shapes, [3, 2]]]
    named = [(f"blocks.{i}.weight", p) for i, p in enumerate(parameters)]
    optimizer = make(named)
    before = [p.detach().clone() for p in parameters]
    for index, p in enumerate(parameters):
        p.grad = None if index == frozen else torch.zeros_like(p) if zero else torch.randn_like(p)
    optimizer.step()
    optimizer.step()
    for index, (p, old) in enumerate(zip(parameters, before, strict=True)):
        assert torch.isfinite(p).all()
        assert p.shape == old.shape
        if index == frozen:
            assert torch.equal(p, old)
        elif not zero:
            assert not torch.equal(p, old)


@every
def test_closure_is_called_with_gradients_on(make, tiny):
    model = tiny()
    optimizer = make(model.named_parameters())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.arange(11)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > optimizer.step(closure).item()
