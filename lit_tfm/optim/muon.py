"""Muon for the hidden matrices, AdamW for the rest, in one torch Optimizer.

Keller Jordan 2024, https://kellerjordan.github.io/posts/muon: the momentum of a hidden matrix is orthogonalised before
it is applied, so every direction is learnt equally fast. torch.optim.Muon does this one matrix at a time and always in
bf16, which a CPU without bf16 units pays for 50-fold; here matrices of one shape go together, in a dtype the device
is fast in.

Shapes: N matrices of one shape, R rows, C columns.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.adamw import adamw as adamw_

from lit_tfm.errors import UserError, nearest
from lit_tfm.optim.groups import Named, group, keep_if, number_by_model, split
from lit_tfm.optim.orthogonal import COEFFICIENTS, Coefficients, orthogonalize
from lit_tfm.optim.shares import by_shares


def muon(
    named_parameters: Iterable[Named],
    lr: float = 0.02,
    adamw_lr: float = 3e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    adamw_weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    coefficients: str = "jordan",
    split_fused: bool = True,
) -> Optimizer:
    """`lr` and `weight_decay` are for hidden matrices, `adamw_lr` and `adamw_weight_decay` for embeddings and heads.

    split_fused orthogonalises by itself each of a parameter's parts: the heads of query, key and value projections,
    the offsets of neighbours. What a head learns is a thing of its own, and small matrices cost less. A task tells its
    optimizer of them; in a loop of one's own `optimizer.parts = parts_of(model)` does.
    (Character model, 4 layers of 64, 300 steps, means of 4 seeds: 1.963 split, 1.976 whole at the better of two rates,
    each seed better; polar_express 1.968.)
    Raises UserError where the model has no hidden matrices.
    """
    if coefficients not in COEFFICIENTS:
        near = nearest(coefficients, COEFFICIENTS)
        raise UserError(f"optimizer.coefficients={coefficients} is not known{near}; one of: {', '.join(COEFFICIENTS)}")
    named = list(named_parameters)
    groups = split(named)
    if not groups.matrices:
        raise UserError("optimizer=muon needs hidden matrices (in blocks), this model has none; type optimizer=adamw")
    hidden = {"momentum": momentum, "coefficients": coefficients, "split_fused": split_fused}
    adam = {"betas": tuple(betas), "eps": eps, "fused": True}
    optimizer = Muon(
        [
            *group("matrices", groups.matrices, lr, weight_decay=weight_decay, hidden=True, **hidden),
            *group("embeddings", groups.embeddings, adamw_lr, weight_decay=adamw_weight_decay, hidden=False, **adam),
            *group("vectors", groups.vectors, adamw_lr, weight_decay=0.0, hidden=False, **adam),
        ]
    )
    return number_by_model(optimizer, named)


class Muon(Optimizer):
    """Groups with hidden=True hold named 2-D parameters and step by Muon, the others by fused AdamW.

    `parts`: by a parameter's name the rows of the matrices that lie below one another in it (`parts_of`).
    Several ranks deal the matrices out among themselves (shares.py): shards (DTensor, FSDP2) by themselves, keeping
    their momentum sharded; copies (DDP) where `replicas` names the ranks whose weights and gradients are the same.
    """

    _step_supports_amp_scaling = True  # torch's word for: a step marked by `found_inf` is left out

    replicas: ProcessGroup | None = None
    parts: Mapping[str, Sequence[int]] = MappingProxyType({})

    def __init__(self, groups: Sequence[dict]):
        super().__init__(groups, {})

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "parts": dict(self.parts)}  # a group of processes can't be copied

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for options in self.param_groups:
            (self._step_hidden if options["hidden"] else self._step_rest)(options)
        return loss

    def _step_hidden(self, options: dict) -> None:
        parameters = [p for p in options["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p.grad)
        gradients = [p.grad for p in parameters]
        momenta, bad = [self.state[p]["momentum"] for p in parameters], getattr(self, "found_inf", None)
        if bad is not None:  # a gradient equal to the momentum leaves it as it is, bit for bit
            gradients = keep_if(bad, momenta, gradients)
        torch._foreach_lerp_(momenta, gradients, 1 - options["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, options["momentum"])  # Nesterov
        names = {id(p): name for name, p in zip(options["param_names"], options["params"], strict=True)}
        told = self.parts if options["split_fused"] else {}
        parts = [told.get(names[id(p)], (p.size(0),)) for p in parameters]
        for p, rows in zip(parameters, parts, strict=True):
            if sum(rows) != p.size(0):  # on every rank, before one of them works on it
                raise ValueError(f"parts of {names[id(p)]}: {rows} rows, of {p.size(0)}")

        def work(indices: Sequence[int], matrices: Sequence[Tensor]) -> list[Tensor]:
            return _directions(matrices, [parts[index] for index in indices], COEFFICIENTS[options["coefficients"]])

        costs = [sum(_cost(rows, p.size(1)) for rows in of_one) for p, of_one in zip(parameters, parts, strict=True)]
        directions = by_shares(updates, costs, work, self.replicas)
        if bad is not None:
            torch._foreach_mul_(directions, 1 - bad)
        if options["weight_decay"]:
            decay = options["lr"] * options["weight_decay"]
            torch._foreach_mul_(parameters, 1 - (decay if bad is None else decay * (1 - bad)))
        torch._foreach_add_(parameters, directions, alpha=-options["lr"])

    def _step_rest(self, options: dict) -> None:
        parameters = [p for p in options["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p].update(step=torch.zeros((), device=p.device), **zeros)
        states, bad = [self.state[p] for p in parameters], getattr(self, "found_inf", None)
        adamw_(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=options["betas"][0],
            beta2=options["betas"][1],
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            eps=options["eps"],
            maximize=False,
            found_inf=bad,
        )


def parts_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """What `Muon.parts` wants to know: the `weight_parts` of a module's layers, by their weights' names."""
    layers = [(name, layer) for name, layer in module.named_modules() if hasattr(layer, "weight_parts")]
    return {".".join(filter(None, (name, "weight"))): layer.weight_parts for name, layer in layers}


def _cost(rows: int, columns: int) -> int:
    """Multiplications of the matrix's product with its transpose."""
    return rows * columns * min(rows, columns)


def _directions(
    updates: Sequence[Tensor], rows_of_parts: Sequence[Sequence[int]], coefficients: Coefficients
) -> list[Tensor]:
    """The updates with each part orthogonalised and scaled by sqrt(max(1, R / C)). Parts lie below one another."""
    parts = [update.split(list(rows)) for update, rows in zip(updates, rows_of_parts, strict=True)]
    stacks: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for part in chain.from_iterable(parts):
        stacks[part.shape].append(part)
    done: dict[torch.Size, Iterator[Tensor]] = {}
    for (rows, columns), members in stacks.items():
        stack = torch.stack(members)  # (N, R, C)
        orthogonal = orthogonalize(stack.to(_dtype(stack)), coefficients).to(stack.dtype)
        if rows > columns:
            orthogonal.mul_((rows / columns) ** 0.5)
        done[stack.shape[1:]] = iter(orthogonal.unbind())
    return [torch.cat([next(done[part.shape]) for part in of_one]) for of_one in parts]


def _dtype(x: Tensor) -> torch.dtype:
    """bf16 on GPUs that have it, fp32 elsewhere: few CPUs have bf16 units, and runs should not differ by CPU."""
    if x.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
