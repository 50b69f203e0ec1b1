"""Products by oneDNN: the values, gradients and layouts of torch, and torch itself where it is not for use."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_tfm.nn import products
from lit_tfm.nn.products import Linear, add_transposed_product, linear, transposed_product, transposed_zeros_like

there = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN",
)
pytestmark = there


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch):
    monkeypatch.setattr(products, "FASTER", True)
    monkeypatch.setattr(products, "LEAST", 1)


@pytest.fixture
def taken(monkeypatch):
    """Shapes of the products that oneDNN was asked for."""
    shapes, real = [], products._product

    def spy(x, weight, bias=None):
        shapes.append((*x.shape, weight.shape[0]))
        return real(x, weight, bias)

    monkeypatch.setattr(products, "_product", spy)
    return shapes


def strided(shape, layout, random):
    """A tensor of `shape` that lies in memory as it is, transposed, or as every other part of something larger."""
    *front, rows, columns = shape
    if layout == "transposed":
        return torch.randn(*front, columns, rows, generator=random).mT
    if layout == "cut":
        return torch.randn(*front, 2 * rows, columns + 3, generator=random)[..., ::2, 3:]
    return torch.randn(shape, generator=random)


LAYOUTS = st.sampled_from(["whole", "transposed", "cut"])


@settings(deadline=None)
@given(
    front=st.lists(st.integers(1, 3), max_size=2),
    rows=st.integers(1, 70),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    biased=st.booleans(),
    frozen=st.sampled_from(["", "x", "weight", "bias"]),
    layouts=st.tuples(LAYOUTS, LAYOUTS),
)
def test_values_and_gradients_are_those_of_float64(front, rows, inner, outer, biased, frozen, layouts):
    random = torch.Generator().manual_seed(rows * inner * outer)
    given = {
        "x": strided((*front, rows, inner), layouts[0], random),
        "weight": strided((outer, inner), layouts[1], random),
        "bias": torch.randn(outer, generator=random) if biased else None,
    }
    for name, value in given.items():
        if value is not None and name != frozen:
            value.requires_grad_()
    upstream = torch.randn(*front, rows, outer, generator=random)
    learnt = {name: value for name, value in given.items() if value is not None and name != frozen}
    exact = {name: None if value is None else value.detach().double() for name, value in given.items()}
    for name in learnt:
        exact[name].requires_grad_()
    ours, theirs = linear(**given), F.linear(exact["x"], exact["weight"], exact["bias"])
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-4)
    found = torch.autograd.grad(ours, list(learnt.values()), upstream)
    wanted = torch.autograd.grad(theirs, [exact[name] for name in learnt], upstream.double())
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other.float(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("wide", [48, 8])
def test_all_three_products_go_by_onednn(taken, wide):
    layer, x = Linear(24, wide), torch.randn(2, 16, 24, requires_grad=True)
    layer(x).sum().backward()
    narrow_first = (24, 32, wide) if wide > 24 else (wide, 32, 24)  # what is copied for the weight's gradient
    assert taken == [(2, 16, 24, wide), (2, 16, wide, 24), narrow_first]
    assert isinstance(layer, nn.Linear)
    assert layer.weight.grad.stride() == layer.weight.stride()


def test_an_expanded_gradient_is_that_of_torch():
    layer, x = Linear(24, 20), torch.randn(32, 24)
    ours = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    theirs = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).sum(), list(layer.parameters()))
    torch.testing.assert_close(ours, theirs)


def test_gradients_of_gradients():
    x = torch.randn(16, 5, requires_grad=True)
    weight, bias = torch.randn(4, 5, requires_grad=True), torch.randn(4, requires_grad=True)

    def second(function):
        first = torch.autograd.grad(function(x, weight, bias).pow(3).sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum(part.square().sum() for part in first), (x, weight, bias))

    for one, other in zip(second(linear), second(F.linear), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)


def test_whatever_else_goes_the_way_of_torch(taken):
    layer, x = Linear(24, 20), torch.randn(32, 24)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.to("meta")(x.to("meta")).is_meta
    assert not taken


@pytest.mark.parametrize(("least", "number"), [(32 * 24 * 20, 2), (32 * 24 * 20 + 1, 0)])
def test_small_products_go_the_way_of_torch(monkeypatch, taken, least, number):
    monkeypatch.setattr(products, "LEAST", least)
    Linear(24, 20)(torch.randn(32, 24))
    transposed_product(torch.randn(32, 24), torch.randn(32, 20))
    assert len(taken) == number


def test_limited_memory_goes_the_way_of_torch(monkeypatch, taken):
    monkeypatch.setattr(products.resource, "getrlimit", lambda _: (1 << 40, 1 << 40))
    layer, x = Linear(24, 20), torch.randn(32, 24)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not taken


def test_other_processors_stay_with_torch(monkeypatch, taken):
    monkeypatch.setattr(products, "FASTER", False)
    layer, x = Linear(24, 20), torch.randn(32, 24)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(products.products(x[None], x.mT[None]), x[None] @ x.mT[None])
    assert not taken


def test_counters_of_flops_count():
    layer, x = Linear(24, 20), torch.randn(32, 24)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 32 * 24 * 20  # x has no gradient


def calls(function, operator="lit_tfm::product"):
    """How often `function` does this operator: ours stands for oneDNN inside of torch.compile."""
    with torch.profiler.profile() as seen:
        function()
    return sum(event.count for event in seen.key_averages() if event.key == operator)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("wide", [48, 8])
def test_compiled_as_without(anew, backend, wide):
    layer, x = Linear(24, wide), torch.randn(2, 16, 24, requires_grad=True)
    learnt = [x, *layer.parameters()]
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    ours = torch.autograd.grad(compiled(x).square().sum(), learnt)
    torch.testing.assert_close(ours, torch.autograd.grad(layer(x).square().sum(), learnt))
    assert calls(lambda: torch.autograd.grad(compiled(x).square().sum(), learnt)) == 3
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
        assert calls(lambda: compiled(x)) == 1


def test_compiled_code_heeds_a_limit_set_later(anew, monkeypatch):
    layer, x = Linear(24, 48), torch.randn(32, 24, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert calls(lambda: compiled(x).sum().backward(), "mkldnn::_linear_pointwise") == 3
    monkeypatch.setattr(products.resource, "getrlimit", lambda _: (1 << 40, 1 << 40))
    assert calls(lambda: compiled(x).sum().backward(), "mkldnn::_linear_pointwise") == 0


def test_compiled_at_any_length(anew):
    """Whether a product is large enough is a question to sizes, which may be symbols."""
    layer = Linear(24, 20)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (7, 32, 40):
        x = torch.randn(rows, 24)
        torch.testing.assert_close(compiled(x), layer(x))
        assert calls(lambda x=x: compiled(x)) == 1


def test_compiled_code_asks_for_the_size_when_it_runs(anew, monkeypatch):
    """A guard for each product's size would compile a block anew at every other length."""
    monkeypatch.setattr(products, "LEAST", 20 * 24 * 20)
    layer = Linear(24, 20)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows, of_onednn in ((7, 0), (32, 1), (9, 0), (40, 1)):
        x = torch.randn(rows, 24)
        torch.testing.assert_close(compiled(x), layer(x))
        assert calls(lambda x=x: compiled(x), "mkldnn::_linear_pointwise") == of_onednn
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_transforms_of_torch_func_and_traces():
    layer, x = Linear(24, 20), torch.randn(3, 32, 24)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    loss(weights, x).backward()
    torch.testing.assert_close(each["weight"].sum(0), layer.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.jit.trace(layer, (x,))(x), layer(x))


def test_exported_programs_know_nothing_of_ours():
    layer, x = Linear(24, 20), torch.randn(32, 24)
    program = torch.export.export(layer, (x,))
    assert not [node for node in program.graph.nodes if "lit_tfm" in str(node.target)]
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize(("rows", "columns"), [(40, 24), (24, 40), (24, 24)])
def test_sums_of_transposed_products(rows, columns):
    left, right = torch.randn(32, rows), torch.randn(32, columns)
    total = transposed_zeros_like(torch.empty(rows, columns), 32, torch.float32)
    assert total.stride() == transposed_product(left, right).stride()
    for _ in range(2):
        add_transposed_product(total, left, right)
    torch.testing.assert_close(total, 2 * left.mT @ right)


def test_many_products(taken):
    left, right = torch.randn(3, 20, 24), torch.randn(3, 24, 18)
    torch.testing.assert_close(products.products(left, right), left @ right)
    torch.testing.assert_close(products.products(left, left.mT), left @ left.mT)
    assert len(taken) == 6
