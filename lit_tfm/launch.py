"""Several processes for one run: each rank starts from the frozen config of the run folder.

`torch.distributed.run` (torchrun) supervises them. Ranks never compose from the command line again: under a multirun
or a sweep every rank would draw or repeat its own (the trap DESIGN.md and PEERS.md section 2.2 tell of). A run that
was started by torchrun or srun itself has its ranks already; there rank 0 names the folder.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment

from lit_tfm.errors import UserError
from lit_tfm.hardware import Hardware

RUN_VARIABLE = "LIT_TFM_RUN"  # the run folder, for ranks that lit_tfm started


def started_from_outside() -> bool:
    """Whether torchrun or srun made this process one rank of several."""
    return "LOCAL_RANK" in os.environ or SLURMEnvironment.detect()


def spawn(folder: Path, hardware: Hardware) -> int:
    """Start all ranks of the run in `folder` on this machine and wait; the exit status of the worst of them."""
    if hardware.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={hardware.num_nodes}: start one process a device on every machine, with "
            f"torchrun --nnodes={hardware.num_nodes} --nproc-per-node={hardware.devices} -m lit_tfm.train ... or srun"
        )
    threads = max(1, (os.cpu_count() or 1) // hardware.devices) if hardware.accelerator == "cpu" else 1
    environment = {**os.environ, RUN_VARIABLE: str(folder)}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={hardware.devices}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}", "-m", "lit_tfm.train"]
    process = subprocess.Popen(command, env=environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        # A terminal's Ctrl-C reaches the ranks by itself; a kill of the parent must be passed on.
        signal.signal(number, lambda n, frame: process.send_signal(n))
    return process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def join(hardware: Hardware) -> None:
    """Let the ranks find each other before the trainer does: they must agree on the folder first."""
    if dist.is_initialized():
        return
    environment = SLURMEnvironment() if SLURMEnvironment.detect() else None
    if environment is not None:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        os.environ.setdefault("RANK", str(environment.global_rank()))
        os.environ.setdefault("WORLD_SIZE", str(environment.world_size()))
    dist.init_process_group("nccl" if hardware.accelerator == "gpu" else "gloo")


def from_rank_zero(value):
    """Rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
