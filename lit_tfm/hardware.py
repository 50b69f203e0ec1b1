"""Where a run computes: `trainer.*` against the machine that is there, decided once and before anything is built."""

import math
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from lit_tfm.errors import UserError, nearest
from lit_tfm.nn.products import FASTER, linear

ACCELERATORS = ("auto", "cpu", "gpu")
STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("auto", "32", "bf16-mixed", "bf16-true")


@dataclass(frozen=True)
class Hardware:
    """What the run got. `devices` counts processes on this machine, one a device."""

    accelerator: str  # cpu | gpu
    strategy: str  # single | ddp | fsdp
    devices: int
    num_nodes: int
    precision: str  # 32-true | bf16-mixed | bf16-true
    name: str  # of the device, for people

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes


def choose(trainer: DictConfig) -> Hardware:
    """Resolve every `auto`. Raises UserError for what this machine can't do."""
    for key, options in (("accelerator", ACCELERATORS), ("strategy", STRATEGIES), ("precision", PRECISIONS)):
        value = str(trainer[key])
        if value not in options:
            raise UserError(
                f"trainer.{key}={value}: not known{nearest(value, options)}; choose from {', '.join(options)}"
            )
    accelerator = _accelerator(trainer.accelerator)
    devices = _devices(trainer.devices, accelerator)
    nodes = int(trainer.num_nodes)
    several = devices * nodes > 1
    if several and trainer.strategy == "auto":
        strategy = "ddp"
    else:
        strategy = trainer.strategy if several or trainer.strategy != "auto" else "single"
    return Hardware(accelerator, strategy, devices, nodes, _precision(trainer, accelerator), device_name(accelerator))


def _accelerator(wanted: str) -> str:
    there = torch.cuda.is_available()
    if wanted == "gpu" and not there:
        raise UserError(
            "trainer.accelerator=gpu: this machine has no GPU that PyTorch sees; type trainer=cpu or trainer=auto"
        )
    return "gpu" if there and wanted != "cpu" else "cpu"


def _devices(wanted: int | str, accelerator: str) -> int:
    there = torch.cuda.device_count() if accelerator == "gpu" else (os.cpu_count() or 1)
    if wanted == "auto":
        return there if accelerator == "gpu" else 1
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise UserError(f"trainer.devices={wanted}: not a number of devices; type auto or 1 to {there}")
    if wanted > there:
        kind = "GPUs" if accelerator == "gpu" else "CPU cores"
        raise UserError(
            f"trainer.devices={wanted}: this machine has {there} {kind}; type trainer.devices={there} or less"
        )
    return wanted


def _precision(trainer: DictConfig, accelerator: str) -> str:
    wanted, there = str(trainer.precision), has_bf16(accelerator)
    if wanted == "auto":
        # Few CPUs have bf16 units, and runs of the same config should give the same figures on all of them.
        return "bf16-mixed" if there and accelerator == "gpu" else "32-true"
    if wanted.startswith("bf16") and not there and not trainer.emulate_bf16:
        raise UserError(
            f"trainer.precision={wanted}: {device_name(accelerator)} has no bf16 units; type trainer.precision=32 "
            "(or trainer.emulate_bf16=true: 10 to 50 times slower)"
        )
    return {"32": "32-true"}.get(wanted, wanted)


def has_bf16(accelerator: str) -> bool:
    """Whether the device computes bf16 in hardware; PyTorch emulates it elsewhere without a word."""
    if accelerator == "gpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def matmul_rate(hardware: Hardware) -> float:
    """FLOP/s of a square matrix product on this device in this precision, measured in a moment (about 0.02 s)."""
    device = torch.device("cuda" if hardware.accelerator == "gpu" else "cpu")
    size, dtype = (4096, torch.bfloat16) if hardware.accelerator == "gpu" else (512, torch.float32)
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = math.inf
    for _ in range(4):
        began = time.perf_counter()
        float(linear(a, a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def device_name(accelerator: str) -> str:
    if accelerator == "gpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found.group(1).strip() if found else platform.processor() or "CPU"
    return f"{name}, {torch.get_num_threads()} threads" + ", oneDNN" * FASTER  # which products: figures depend on it
