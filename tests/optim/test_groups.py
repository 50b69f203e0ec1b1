import torch
from torch import nn

from lit_tfm.optim.groups import decay_groups, split


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.neighbours = nn.Linear(4, 8, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def names(members):
    return [name for name, _ in members]


def test_rule():
    groups = split(Tiny().named_parameters())
    assert names(groups.matrices) == ["neighbours.weight", "blocks.0.weight"]
    assert names(groups.embeddings) == ["embedding.weight"]
    assert names(groups.vectors) == ["scale", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias"]


def test_tied_parameter_counts_once_even_when_it_is_listed_twice():
    model = Tiny()
    listed = list(model.named_parameters(remove_duplicate=False))
    assert "head.weight" in dict(listed)
    assert names(split(listed).embeddings) == ["embedding.weight"]


def test_higher_dimensional_parameters_are_no_hidden_matrices():
    convolution = nn.Conv1d(2, 3, 5)
    groups = split((f"blocks.0.{name}", p) for name, p in convolution.named_parameters())
    assert names(groups.embeddings) == ["blocks.0.weight"]
    assert not groups.matrices


def test_vectors_never_decay_and_groups_carry_their_peak():
    groups = {group["name"]: group for group in decay_groups(Tiny().named_parameters(), lr=0.3, weight_decay=0.1)}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "matrices": 0.1,
        "embeddings": 0.1,
        "vectors": 0.0,
    }
    assert all(group["initial_lr"] == group["lr"] == 0.3 for group in groups.values())


def test_empty_groups_are_left_out():
    assert [group["name"] for group in decay_groups(nn.LayerNorm(3).named_parameters(), 1.0, 0.1)] == ["vectors"]
