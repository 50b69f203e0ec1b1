"""What to say when memory runs out: what asked for how much, what there was, and what to lower."""

import re
import resource
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from lit_tfm.build import Parts
from lit_tfm.callbacks.whereabouts import Whereabouts
from lit_tfm.hardware import Hardware
from lit_tfm.models.cost import parameters
from lit_tfm.tasks.out_of_memory import OutOfMemory

ENFORCE = re.compile(r"\[enforce fail at [^\]]*\] err == 0\. ")  # where in torch's source it says so
CGROUP = Path("/sys/fs/cgroup/memory.max")


def explain(
    error: BaseException, cfg: DictConfig, hardware: Hardware, parts: Parts | None, where: Whereabouts | None
) -> OutOfMemory:
    """`error` is what the allocator said; `parts` and `where` are None where nothing was built yet."""
    place = where.tell() if where is not None else "building the run"
    rows = where.rows if where is not None else 0
    sizes = [_batch(cfg, hardware, where)] if rows else []
    if parts is not None:
        sizes.append(f"{parameters(parts.task):,} parameters")
    sizes.append(f"{hardware.name} has {there(hardware)}")
    said = ENFORCE.sub("", " ".join(str(error).split()))[:160] or type(error).__name__
    return OutOfMemory(f"out of memory ({place}): {'; '.join(sizes)}; {_advice(cfg, rows)} ({said})", rows)


def _batch(cfg: DictConfig, hardware: Hardware, where: Whereabouts) -> str:
    asked = "data.batch_size" if OmegaConf.select(cfg, "data.batch_size") else "data.batch_tokens"
    ranks = f" and {hardware.world_size} ranks" if hardware.world_size > 1 else ""
    return (
        f"a micro-batch of {where.rows} x {where.width} = {where.rows * where.width:,} tokens, of a batch of {asked}="
        f"{OmegaConf.select(cfg, asked)} in trainer.accumulate={cfg.trainer.accumulate} parts{ranks}"
    )


def _advice(cfg: DictConfig, rows: int) -> str:
    length = "data.block_size" if OmegaConf.select(cfg, "data.block_size") else "data.max_length"
    smaller = f"a smaller model.d_model, model.n_layers or {length}"
    if rows <= 1:
        return f"type {smaller}"
    more = cfg.trainer.accumulate * 2
    return f"type trainer.accumulate={more} (the batch stays what it is), auto_batch=true, or {smaller}"


def there(hardware: Hardware) -> str:
    """The memory of the device, and how much of it is free."""
    if hardware.accelerator == "gpu":
        free, total = torch.cuda.mem_get_info()
        return f"{_gib(total)}; this run used {_gib(torch.cuda.max_memory_allocated())} at most, {_gib(free)} are free"
    limits = []
    if (soft := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        limits.append(f", this process may have {_gib(soft)} (ulimit -v)")
    if CGROUP.exists() and (cap := CGROUP.read_text().strip()).isdigit():
        limits.append(f", this container {_gib(int(cap))}")
    known = dict(line.split(":") for line in _lines(Path("/proc/meminfo")))
    total, free = (1024 * int(known.get(key, "0 kB").split()[0]) for key in ("MemTotal", "MemAvailable"))
    return f"{_gib(total)}, {_gib(free)} of it free{''.join(limits)}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
