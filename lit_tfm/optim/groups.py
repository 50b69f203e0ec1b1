"""Which parameter is learnt how: the split every optimizer of lit_tfm shares.

Hidden matrices turn features into features and are what Muon is for; embeddings and heads are looked up or read out by
row; vectors (gains, biases, scalars) are neither, and decaying them only hurts.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

Named = tuple[str, nn.Parameter]


class Groups(NamedTuple):
    matrices: list[Named]  # 2-D, inside the blocks or between neighbours
    embeddings: list[Named]  # embeddings, heads, and whatever else has two or more dimensions
    vectors: list[Named]  # fewer than two dimensions: never decayed


def split(named_parameters: Iterable[Named]) -> Groups:
    """Every parameter lands in exactly one group; a tied one counts once, under the first of its names.

    A 2-D parameter is a hidden matrix when its qualified name contains "blocks." or "neighbours.".
    """
    unique: dict[int, Named] = {}
    for name, parameter in named_parameters:
        unique.setdefault(id(parameter), (name, parameter))
    groups = Groups([], [], [])
    for name, parameter in unique.values():
        if parameter.ndim < 2:
            groups.vectors.append((name, parameter))
        elif parameter.ndim == 2 and ("blocks." in name or "neighbours." in name):
            groups.matrices.append((name, parameter))
        else:
            groups.embeddings.append((name, parameter))
    placed = [id(parameter) for group in groups for _, parameter in group]
    assert sorted(placed) == sorted(unique), "every parameter belongs to exactly one group"
    return groups


def group(name: str, members: Sequence[Named], lr: float, **options: Any) -> list[dict[str, Any]]:
    """One torch parameter group, or none where there are no members (torch refuses an optimizer of empty groups).

    `initial_lr` is the peak that schedules scale, and what a resumed run trusts; `name` labels learning-rate curves.
    """
    return [{"params": list(members), "name": name, "lr": lr, "initial_lr": lr, **options}] if members else []


def decay_groups(named_parameters: Iterable[Named], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and embeddings decay, vectors do not."""
    groups = split(named_parameters)
    return [
        *group("matrices", groups.matrices, lr, weight_decay=weight_decay),
        *group("embeddings", groups.embeddings, lr, weight_decay=weight_decay),
        *group("vectors", groups.vectors, lr, weight_decay=0.0),
    ]


def number_by_model(optimizer: Optimizer, named_parameters: Iterable[Named]) -> Optimizer:
    """Make `optimizer.state_dict()` number parameters by their place in the model, not in the groups; returns it.

    Trap: FSDP2 through Lightning reads the numbers of a single-process checkpoint as places in the model, so with
    groups that reorder parameters it would hand one parameter's momentum to another. Loading goes by the order inside
    the groups and takes any numbers. Sharded optimizers are left alone: torch turns their numbers into names itself.
    """
    places: dict[int, int] = {}
    for _, parameter in named_parameters:
        places.setdefault(id(parameter), len(places))

    def renumber(optimizer: Optimizer, state: dict[str, Any]) -> None:
        members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(isinstance(parameter, DTensor) for parameter in members):
            return
        place = {number: places[id(parameter)] for number, parameter in enumerate(members)}
        state["state"] = {place[number]: value for number, value in state["state"].items()}
        for packed in state["param_groups"]:
            packed["params"] = [place[number] for number in packed["params"]]

    optimizer.register_state_dict_post_hook(renumber)
    return optimizer


def keep_if(bad: Tensor, old: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """Copies of `old` where `bad` () is not 0, else of `new`. Nobody waits for the device to know which."""
    held = bad > 0
    return [torch.where(held, a, b) for a, b in zip(old, new, strict=True)]
