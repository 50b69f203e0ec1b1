"""Work on matrices that several ranks hold, done by one rank for each matrix.

What a rank does for every matrix costs every step the same, however many ranks there are: with a fixed global batch it
soon is the most of a step. Here the ranks deal the matrices out among themselves, and exchange the results.
Keller Jordan deals them out for DDP (https://github.com/KellerJordan/modded-nanogpt); so does this, and for shards.

Shapes: N matrices, R rows, C columns.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard

# (indices of matrices, those matrices (R, C)) -> as many results of the same shapes
Work = Callable[[Sequence[int], Sequence[Tensor]], Sequence[Tensor]]


def by_shares(
    matrices: Sequence[Tensor], costs: Sequence[int], work: Work, replicas: ProcessGroup | None
) -> list[Tensor]:
    """The results of `work` on `matrices`, on every rank (collective), each sharded as its matrix.

    `costs` say how dear one is beside another.

    Matrices sharded by FSDP2 are given to their rank whole, and the results return in shards: two exchanges that
    together carry as much as to gather every matrix on two ranks, and less on more. Others have to be the same on all
    ranks of `replicas` (one exchange; without `replicas` there is none, and all the work is done here).
    Raises NotImplementedError for matrices of several dtypes, and for shards other than FSDP2's, by rows over one
    dimension of the mesh.
    """
    sharded = isinstance(matrices[0], DTensor)
    if not sharded and (replicas is None or replicas.size() == 1):
        return list(work(range(len(matrices)), matrices))
    _one_dtype(matrices)
    return _shards(matrices, costs, work) if sharded else _copies(matrices, costs, work, replicas)


def on_this_machine(machines: int) -> ProcessGroup:
    """The ranks on this machine (collective); all machines have as many.

    What `replicas` should be under DDP: between machines the exchange may take longer than what it saves.
    """
    if machines == 1:
        return dist.group.WORLD
    return dist.new_subgroups(dist.get_world_size() // machines)[0]


def _one_dtype(matrices: Sequence[Tensor]) -> None:
    dtypes = {matrix.dtype for matrix in matrices}
    if len(dtypes) > 1:
        raise NotImplementedError(
            f"ranks share matrices of one dtype; these have {', '.join(sorted(map(str, dtypes)))}"
        )


@lru_cache
def deal(costs: tuple[int, ...], ranks: int) -> list[list[int]]:
    """Which matrices each rank works on: the dearest first, each to the rank that has the least work so far."""
    loads, hands = [0] * ranks, [[] for _ in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        rank = loads.index(min(loads))
        loads[rank] += costs[index]
        hands[rank].append(index)
    return [sorted(hand) for hand in hands]


def _copies(matrices: Sequence[Tensor], costs: Sequence[int], work: Work, group: ProcessGroup) -> list[Tensor]:
    owned = deal(tuple(costs), group.size())
    mine = owned[group.rank()]
    done = work(mine, [matrices[index] for index in mine]) if mine else []
    # Padded to the longest: gloo gathers only equal sizes. With more ranks than matrices that is most of it.
    longest = max(sum(matrices[index].numel() for index in indices) for indices in owned)
    sent = matrices[0].new_zeros(longest)
    torch.cat([matrices[0].new_empty(0), *(x.reshape(-1) for x in done)], out=sent[: sum(x.numel() for x in done)])
    received = sent.new_empty(group.size(), longest).unbind()
    dist.all_gather(list(received), sent, group=group)
    results: dict[int, Tensor] = {}
    for indices, part in zip(owned, received, strict=True):
        shapes = [matrices[index].shape for index in indices]
        results.update(zip(indices, _cut(part, shapes), strict=True))
    return [results[index] for index in range(len(matrices))]


def _shards(matrices: Sequence[DTensor], costs: Sequence[int], work: Work) -> list[Tensor]:
    mesh, placements = matrices[0].device_mesh, matrices[0].placements
    if any(m.device_mesh != mesh or m.placements != (Shard(0),) for m in matrices):
        raise NotImplementedError(f"matrices sharded as {placements} over {mesh}: only by rows, over one dimension")
    group, ranks = mesh.get_group(), mesh.size()
    owned = deal(tuple(costs), ranks)
    mine = owned[group.rank()]
    local = [m.to_local() for m in matrices]
    rows = [_rows(m.size(0), ranks) for m in matrices]

    shards = [[(rows[i][rank], matrices[i].size(1)) for i in mine] for rank in range(ranks)]
    received = _exchange([[local[i] for i in indices] for indices in owned], shards, local[0], group)
    done = work(mine, [torch.cat(parts) for parts in zip(*received, strict=True)]) if mine else []

    parts = [result.split(rows[i]) for i, result in zip(mine, done, strict=True)]
    back = [[local[i].shape for i in indices] for indices in owned]
    received = _exchange([[part[rank] for part in parts] for rank in range(ranks)], back, local[0], group)
    results = {i: x for indices, part in zip(owned, received, strict=True) for i, x in zip(indices, part, strict=True)}
    return [
        DTensor.from_local(results[i], mesh, placements, run_check=False, shape=m.shape, stride=m.stride())
        for i, m in enumerate(matrices)
    ]


@lru_cache
def _rows(rows: int, ranks: int) -> list[int]:
    """How many each rank has, by the rule of `Shard(0)`: as torch.chunk, and none where there are too few."""
    chunk = -(-rows // ranks)
    return [max(0, min(chunk, rows - rank * chunk)) for rank in range(ranks)]


def _exchange(
    sent: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[Sequence[int]]], like: Tensor, group: ProcessGroup
) -> list[list[Tensor]]:
    """sent[r] goes to rank r; of rank r come tensors of shapes[r]."""
    buffer = torch.cat([like.new_empty(0), *(x.reshape(-1) for part in sent for x in part)])
    sizes = [sum(x.numel() for x in part) for part in sent]
    coming = [sum(prod(shape) for shape in part) for part in shapes]
    received = buffer.new_empty(sum(coming))
    dist.all_to_all_single(received, buffer, coming, sizes, group=group)
    return [_cut(part, of_rank) for part, of_rank in zip(received.split(coming), shapes, strict=True)]


def _cut(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The tensors of these shapes that lie in `flat` one behind the other; what is left is padding."""
    sizes = [prod(shape) for shape in shapes]
    pieces = flat[: sum(sizes)].split(sizes)
    return [piece.view(*shape) for piece, shape in zip(pieces, shapes, strict=True)]
