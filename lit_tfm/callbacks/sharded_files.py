"""A checkpoint in shards: a folder to which every rank writes its part of weights, averages and optimizer state.

    last.ckpt/
      shard-00001-*.safetensors   one a rank, cut by torch.distributed.checkpoint
      rest.pt                     what is no shard: counters, callbacks, replicated tensors, and where the shards belong
      shards.json                 size and CRC-32 of every file; there last

torch.distributed.checkpoint's own format keeps its table of contents as a pickle, which executes what a stranger puts
there. Its safetensors format has the table in the files' headers, as JSON; rest.pt is read with `weights_only=True`.
"""

import errno
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from lit_tfm.callbacks.replacing import SHARDS, disk_error, open_new, remove, sync, sync_folder

REST = "rest.pt"
SHARDED = ("state_dict", "training_weights", "optimizer_states")  # of a checkpoint: what may hold shards
MARK = "shard:"  # in rest.pt: here belongs the tensor of this name
CHUNK = 1 << 22  # bytes


# ---- taking apart ----------------------------------------------------------------------------------------------


def take_out(value: Any, path: str, tensors: dict[str, Tensor], aliases: dict[str, str]) -> Any:
    """`value` with a mark in place of every sharded tensor, which goes into `tensors`.

    `aliases`: further names of tied parameters -> the first; what they name is kept once.
    """
    if isinstance(value, DTensor):
        group, _, name = path.partition("/")
        path = f"{group}/{aliases.get(name, name)}"
        tensors[path] = value.detach()
        return MARK + path
    if isinstance(value, dict):
        return {key: take_out(child, f"{path}/{key}", tensors, aliases) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [take_out(child, f"{path}/{i}", tensors, aliases) for i, child in enumerate(value)]
    return value


def put_in(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse. Raises KeyError where a tensor is missing."""
    if isinstance(value, str) and value.startswith(MARK):
        return tensors[value.removeprefix(MARK)]
    if isinstance(value, dict):
        return {key: put_in(child, tensors) for key, child in value.items()}
    return [put_in(child, tensors) for child in value] if isinstance(value, list) else value


def aliases(module: nn.Module) -> dict[str, str]:
    """Every further name of a tied parameter -> its first."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: kept for name, p in named if (kept := first.setdefault(id(p), name)) != name}


# ---- writing ---------------------------------------------------------------------------------------------------


def write(folder: Path, checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Fill `folder`, which rank 0 makes anew. Collective: where one rank can not write, all raise (`together`).

    The caller renames it. On a disk that is shared by all ranks, as the run folder has to be.
    """
    names = aliases(module)
    tensors: dict[str, Tensor] = {}
    rest = {k: take_out(v, k, tensors, names) if k in SHARDED else v for k, v in checkpoint.items()}
    rest["parameters"] = [name for name, _ in module.named_parameters()]
    together(lambda: _begin(folder, rest))
    together(lambda: _save(tensors, folder))
    mine = together(lambda: _sums(folder))
    together(lambda: _finish(folder, mine))


def _begin(folder: Path, rest: dict[str, Any]) -> None:
    if dist.get_rank() == 0:
        remove(folder)
        folder.mkdir(parents=True)
        with open_new(folder / REST) as file:
            torch.save(rest, file)


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.CheckpointException as failed:  # of any rank, told to all
        causes = [error for error, _ in failed.failures.values()]
        raise next((error for error in causes if isinstance(error, OSError)), failed) from failed


def _sums(folder: Path) -> dict[str, list[int]]:
    """Sync what this rank wrote, and read it once: name -> [bytes, CRC-32]."""
    mine = [folder / REST] if dist.get_rank() == 0 else []
    mine += folder.glob(f"shard-{dist.get_rank() + 1:05d}-*")
    for path in mine:
        sync(path)
    return {path.name: [path.stat().st_size, crc(path)] for path in mine}


def _finish(folder: Path, sums: Iterable[dict[str, list[int]]]) -> None:
    if dist.get_rank() == 0:
        table = {name: entry for part in sums for name, entry in part.items()}
        with open(folder / SHARDS, "w", encoding="utf-8") as file:
            json.dump({"files": table}, file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)


def together(act: Callable[[], Any]) -> list[Any]:
    """`act()` on every rank; what each returned, on every rank.

    Where it fails on any, all raise, as the others would wait for one that has left: OSError with what a disk answered,
    else the error itself on its own rank and a RuntimeError that quotes it on the others.
    """
    value, failed, answer = None, None, None
    try:
        value = act()
    except Exception as error:
        failed, answer = error, disk_error(error)
    said = failed and f"{type(failed).__name__}: {failed}"
    disk = answer and (answer.errno or errno.EIO, answer.strerror or str(answer), answer.filename)
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (value, said, disk))
    if answered := next((disk for _, _, disk in told if disk), None):
        raise OSError(*answered) from failed
    if failed is not None:
        raise failed
    for rank, (_, said, _) in enumerate(told):
        if said:
            raise RuntimeError(f"rank {rank} could not write its part of the checkpoint: {said}")
    return [value for value, _, _ in told]


def crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


# ---- reading ---------------------------------------------------------------------------------------------------


def check(folder: Path) -> str | None:
    """None where every file is there and has its checksum, and no other is, else what is wrong."""
    try:
        table = json.loads((folder / SHARDS).read_text(encoding="utf-8"))["files"]
        entries = [(str(name), int(size), int(value)) for name, (size, value) in table.items()]
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{SHARDS} can't be read"
    there = {path.name for path in folder.iterdir()} - {SHARDS}
    for name, size, value in entries:
        if name not in there:
            return f"{name} is missing"
        if (folder / name).stat().st_size != size or crc(folder / name) != value:
            return f"the checksum of {name} is wrong"
    extra = sorted(there - set(table))  # what lies beside would be read as well
    return f"{extra[0]} does not belong to it" if extra else None


def rest(folder: Path) -> dict[str, Any]:
    """All but the shards, with marks where they belong. Executes nothing."""
    return torch.load(folder / REST, weights_only=True, map_location="cpu")


def sizes(folder: Path) -> dict[str, torch.Size]:
    """Name -> shape of the weights."""
    known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    marked = rest(folder)["state_dict"]
    return {k: known[v.removeprefix(MARK)].size if isinstance(v, str) else v.shape for k, v in marked.items()}


def read(folder: Path, only: str | None = None) -> dict[str, Any]:
    """The checkpoint as one file would hold it, whole, in this process alone; or only one of its entries.

    The optimizer's state is numbered by the parameters' places in the model, as that of one process is.
    """
    kept = rest(folder)
    if only is not None:
        kept = {only: kept[only]}
    known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    wanted = {k: v for k, v in known.items() if only is None or k.startswith(f"{only}/")}
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in wanted.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")  # one process is what is meant
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    kept = {k: put_in(v, tensors) if k in SHARDED else v for k, v in kept.items()}
    if "optimizer_states" in kept:
        kept["optimizer_states"] = [numbered(state, kept["parameters"]) for state in kept["optimizer_states"]]
    return kept


def numbered(state: dict[str, Any], parameters: list[str]) -> dict[str, Any]:
    """An optimizer's state by parameters' names -> by their numbers."""
    place = {name: number for number, name in enumerate(parameters)}
    groups = [{**group, "params": [place[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {place[name]: value for name, value in state["state"].items()}, "param_groups": groups}
