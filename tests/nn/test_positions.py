"""Each scheme against its paper's formula, and `start` against a slice of the whole."""

import math

import pytest
import torch

from lit_tfm.errors import UserError
from lit_tfm.nn.positions import SCHEMES, Positions, Rotary, Sinusoidal, T5Buckets, alibi_slopes, positions


def make(name, causal=True):
    made = positions(name, max_length=40, d_model=12, n_heads=3, head_dim=4, causal=causal)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("name", SCHEMES)
def test_starting_later_is_a_slice_of_the_whole(name):
    made, x, heads = make(name), torch.randn(2, 9, 12), torch.randn(2, 9, 3, 4)
    torch.testing.assert_close(made.embed(x)[:, 4:], made.embed(x[:, 4:], 4))
    torch.testing.assert_close(made.rotate(heads)[:, 4:], made.rotate(heads[:, 4:], 4))
    whole = made.bias(9, 9)
    assert (whole is None) == (name not in ("alibi", "t5"))
    if whole is not None:
        torch.testing.assert_close(whole[:, 4:], made.bias(5, 9, 4))


@pytest.mark.parametrize("name", ["learned", "sinusoidal"])
def test_one_start_a_row_moves_left_padding_out_of_the_way(name):
    made, x = make(name), torch.randn(2, 6, 12)
    moved = made.embed(x, torch.tensor([0, -2]))
    torch.testing.assert_close(moved[0], made.embed(x)[0])
    torch.testing.assert_close(moved[1, 2:], made.embed(x[1:, 2:])[0])


@pytest.mark.parametrize("name", SCHEMES)
def test_only_its_own_doors_do_something(name):
    made, x, heads = make(name), torch.randn(2, 9, 12), torch.randn(2, 9, 3, 4)
    doors = {
        "embed": not torch.equal(made.embed(x), x),
        "rotate": not torch.equal(made.rotate(heads), heads),
        "bias": made.bias(9, 9) is not None,
    }
    used = {"learned": "embed", "sinusoidal": "embed", "rotary": "rotate", "alibi": "bias", "t5": "bias"}.get(name)
    assert [door for door, does in doors.items() if does] == ([used] if used else [])
    assert made.absolute == (used == "embed")


def test_sinusoidal_is_the_formula_of_the_paper():
    table = Sinusoidal(30, 8).table
    for position in (0, 1, 17, 29):
        for i in range(4):
            angle = position / 10_000 ** (2 * i / 8)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_rotary_keeps_lengths_and_depends_on_distance_only():
    rotary, q, k = Rotary(64, 8), torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    torch.testing.assert_close(rotary.rotate(q, 37).norm(), q.norm())

    def product(i, j):
        return (rotary.rotate(q, i) * rotary.rotate(k, j)).sum()

    torch.testing.assert_close(product(3, 10), product(40, 47), atol=1e-5, rtol=1e-5)
    assert (product(3, 10) - product(3, 11)).abs() > 1e-4


def test_rotary_turns_the_pairs_by_the_paper_s_angles():
    rotary, x = Rotary(64, 4), torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    turned = rotary.rotate(x, 5).flatten()  # pairs (0, 2) and (1, 3), frequencies 1 and 1/100
    expected = [math.cos(5), -2 * math.sin(0.05), math.sin(5), 2 * math.cos(0.05)]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_alibi_slopes_are_those_of_the_paper():
    assert alibi_slopes(8) == pytest.approx([2**-n for n in range(1, 9)])
    assert alibi_slopes(16)[:2] == pytest.approx([2**-0.5, 2**-1])
    assert alibi_slopes(12)[:8] == pytest.approx(alibi_slopes(8))  # no power of two: as published code has it
    assert alibi_slopes(12)[8:] == pytest.approx(alibi_slopes(16)[0:8:2])


def test_alibi_falls_linearly_on_both_sides():
    bias = make("alibi").bias(5, 5)
    slopes = torch.tensor(alibi_slopes(3))
    for i in range(5):
        for j in range(5):
            torch.testing.assert_close(bias[:, i, j], -slopes * abs(i - j))


def reference_bucket(offset, causal, buckets=32, max_distance=128):
    """Mesh TensorFlow's `_relative_position_bucket` in scalars; offset = key - query."""
    result, n = 0, -offset
    if not causal:
        buckets //= 2
        result += buckets if n < 0 else 0
        n = abs(n)
    n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return result + n
    far = exact + int(math.log(n / exact) / math.log(max_distance / exact) * (buckets - exact))
    return result + min(far, buckets - 1)


@pytest.mark.parametrize("causal", [True, False])
def test_t5_buckets_are_those_of_the_paper_s_code(causal):
    made = T5Buckets(2, causal=causal)
    # At the exact borders (16, 32, 64 ...) float32 and float64 logarithms may fall on either side.
    offsets = [o for o in range(-300, 301) if abs(o) not in (16, 32, 64, 128, 256)]
    expected = [reference_bucket(offset, causal) for offset in offsets]
    assert made.bucket(torch.tensor(offsets)).tolist() == expected
    assert set(made.bucket(torch.arange(-400, 401)).tolist()) == set(range(32)) - (set() if causal else {16})


def test_too_long_a_sequence_is_a_mistake_a_person_can_mend():
    with pytest.raises(UserError, match=r"41 tokens.*40.*model\.max_length=41"):
        make("rotary").check(41)
    make("rotary").check(40)
    Positions().check(10**6)


@pytest.mark.parametrize("name", SCHEMES)
def test_tables_are_not_saved_and_can_be_filled_again(name):
    made = make(name)
    assert set(made.state_dict()) == {n for n, _ in made.named_parameters()}
    before = {n: b.clone() for n, b in made.named_buffers()}
    for buffer in made.buffers():
        buffer.fill_(torch.nan)
    made.fill()
    for n, buffer in made.named_buffers():
        assert torch.equal(buffer, before[n])
