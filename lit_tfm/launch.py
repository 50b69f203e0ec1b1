"""Several processes for one run: each rank starts from the frozen config of the run folder.

`torch.distributed.run` (torchrun) supervises them. Ranks never compose from the command line again: under a multirun
or a sweep every rank would draw or repeat its own (the trap DESIGN.md and PEERS.md section 2.2 tell of). A run that
was started by torchrun or srun itself has its ranks already; there rank 0 names the folder.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig

from lit_tfm.errors import UserError
from lit_tfm.hardware import Hardware, choose
from lit_tfm.terminal import harmless

T = TypeVar("T")
RUN_VARIABLE = "LIT_TFM_RUN"  # the run folder, for ranks that lit_tfm started
RESUME_VARIABLE = "LIT_TFM_RESUME"  # the checkpoint they go on from, if any
MISTAKE = ".refused"  # in the run folder while a rank tells what it was refused for
STATUS = re.compile(r"exitcode\s*:\s*(1[34]\d)\b")  # of a rank that was stopped by a signal, in torchrun's report


def started_from_outside() -> bool:
    """Whether torchrun or srun made this process one rank of several."""
    return "LOCAL_RANK" in os.environ or SLURMEnvironment.detect()


def check(hardware: Hardware) -> None:
    """Raises UserError where the processes there are differ from those the config speaks of."""
    there = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", 1)))
    if started_from_outside() and there != hardware.world_size:
        raise UserError(
            f"{there} processes were started and trainer.devices={hardware.devices} trainer.num_nodes="
            f"{hardware.num_nodes} make {hardware.world_size}; type trainer=ddp trainer.devices=<processes a machine>"
        )
    if hardware.num_nodes > 1 and not started_from_outside():
        raise UserError(
            f"trainer.num_nodes={hardware.num_nodes}: start one process a device on every machine, with "
            f"torchrun --nnodes={hardware.num_nodes} --nproc-per-node={hardware.devices} -m lit_tfm.train ... or srun"
        )


def check_grid(configs: list[DictConfig]) -> None:
    """Raises UserError where runs of one `-m`, which follow one another in this process, are runs of several."""
    for cfg in configs:
        hardware = choose(cfg.trainer)
        if hardware.world_size > 1:
            raise UserError(
                f"-m trains one run after the other in one process, and trainer.devices={hardware.devices} asks for "
                f"{hardware.world_size}; type one command for each run, or python -m lit_tfm.sweep, whose trials may "
                "have several processes"
            )


def spawn(folder: Path, hardware: Hardware, resume: Path | None) -> None:
    """Start all ranks of the run in `folder` on this machine and wait for their end.

    Raises UserError with what a rank was refused for, and SystemExit with the ranks' status where they failed.
    """
    threads = max(1, (os.cpu_count() or 1) // hardware.devices) if hardware.accelerator == "cpu" else 1
    environment = {**os.environ, RUN_VARIABLE: str(folder), RESUME_VARIABLE: str(resume.resolve() if resume else "")}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={hardware.devices}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}", "-m", "lit_tfm.train"]
    (folder / MISTAKE).unlink(missing_ok=True)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    with _passed_on(process) as passed:
        complaints = process.stderr.read()
        status = process.wait()
    if (folder / MISTAKE).exists():
        message = (folder / MISTAKE).read_text()
        (folder / MISTAKE).unlink()
        raise UserError(message)
    ended = STATUS.search(complaints)  # torchrun itself always ends with 1
    if status and (passed or ended):
        raise SystemExit(128 + passed[0] if passed else int(ended.group(1)))
    if status:
        sys.stderr.write(harmless(complaints))
        raise SystemExit(status if status > 0 else 128 - status)


@contextmanager
def _passed_on(process: subprocess.Popen):
    """Signals to this process go to the ranks, which save and end; yields the list of those that came."""
    before, passed = {}, []

    def pass_on(number: int, frame) -> None:
        passed.append(number)
        process.send_signal(number)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    yield passed
    for number, handler in before.items():
        signal.signal(number, handler)


def tell(error: UserError) -> None:
    """From a rank to the process that started it: what the run was refused for."""
    if rank() == 0:
        Path(os.environ[RUN_VARIABLE], MISTAKE).write_text(str(error))


def handed_on() -> Path | None:
    """The checkpoint that the process which started this rank goes on from."""
    resume = os.environ.get(RESUME_VARIABLE)
    return Path(resume) if resume else None


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


def agreed(decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank; a UserError of its is raised on all of them."""
    value, refusal = None, None
    if rank() == 0:
        try:
            value = decide()
        except UserError as error:
            refusal = str(error)
    value, refusal = from_rank_zero((value, refusal))
    if refusal is not None:
        raise UserError(refusal)
    return value


def rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
