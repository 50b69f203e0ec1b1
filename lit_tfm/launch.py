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
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from lit_tfm import last_word
from lit_tfm.errors import HUNG, TIME_IS_UP, UserError
from lit_tfm.hardware import Hardware, choose
from lit_tfm.holding import Hold
from lit_tfm.last_word import LastWord
from lit_tfm.runs import RunFolder
from lit_tfm.tasks.budget import seconds
from lit_tfm.tasks.out_of_memory import OutOfMemory
from lit_tfm.terminal import harmless

T = TypeVar("T")
RUN_VARIABLE = "LIT_TFM_RUN"  # the run folder, for ranks that lit_tfm started
RESUME_VARIABLE = "LIT_TFM_RESUME"  # the checkpoint they go on from, if any
DEADLINE_VARIABLE = "LIT_TFM_DEADLINE"  # when they are to stop, of time.time
BEFORE_SLURM = 120  # seconds before the end of its job that a run stops, to save
PATIENCE = 600  # seconds that ranks have for a checkpoint between a signal and SIGKILL; torchrun's default is 30
TRACEBACK = "Traceback (most recent call last)"
PASSED_ON = ("SIGTERM", "SIGINT", "SIGUSR1")
IN_ORDER = (TIME_IS_UP, *(128 + signal.Signals[name] for name in PASSED_ON))  # statuses of a run that has saved
# Of the first rank that ended badly, in torchrun's report.
STATUS = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)


class RankFailed(SystemExit):
    """A rank ended badly, and what there is to say has been said."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.reason = reason


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


def spawn(folder: Path, hardware: Hardware, resume: Path | None, deadline: float | None, hold: Hold | None) -> None:
    """Start all ranks of the run in `folder` on this machine and wait for their end.

    torchrun inherits `hold`, so that nobody else has the folder before the ranks share it, should this process die.
    Raises UserError with what a rank was refused for, and SystemExit with the ranks' status where they failed; what is
    to be said is said by the rank that failed first, once.
    """
    threads = max(1, (os.cpu_count() or 1) // hardware.devices) if hardware.accelerator == "cpu" else 1
    environment = {**os.environ, RUN_VARIABLE: str(folder), RESUME_VARIABLE: str(resume.resolve() if resume else "")}
    if deadline is not None:
        environment[DEADLINE_VARIABLE] = str(deadline)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={hardware.devices}"]
    command += [f"--shutdown-timeout={PATIENCE}", f"--signals-to-handle={','.join(PASSED_ON)},SIGHUP,SIGQUIT"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}", "-m", "lit_tfm.train"]
    last_word.forget(folder)
    handed = [hold.handle] if hold is not None and hold.handle is not None else []
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=handed
    )
    with _passed_on(process) as passed:
        complaints = process.stderr.read()
        status = process.wait()
    word = last_word.heard(folder)
    last_word.forget(folder)
    if word is not None and not _follows_a_kill(word, complaints):
        _repeat(word, complaints)
    if status:
        _end_as_the_ranks(complaints, passed, status)


def _repeat(word: LastWord, complaints: str) -> NoReturn:
    """Say what the first rank that failed had to say; that one's status becomes the run's."""
    if word.kind == "memory":
        raise OutOfMemory(word.message, word.rows)
    if word.kind == "hung":
        sys.stderr.write(harmless(complaints[: max(0, complaints.rfind(TRACEBACK))]))  # what follows is torchrun's
    if word.kind != "failed":
        raise UserError(word.message, word.status)
    sys.stderr.write(harmless(f"rank {word.rank} failed, which ended the others:\n{word.trace}"))
    raise RankFailed(word.status, f"rank {word.rank}: {word.message}")


def _follows_a_kill(word: LastWord, complaints: str) -> bool:
    """Whether the rank that left the word failed because another was killed, which can leave none."""
    root = STATUS.search(complaints)
    if word.kind != "failed" or root is None or int(root.group(1)) == word.rank:
        return False
    return int(root.group(2)) < 0 and int(root.group(2)) != -signal.SIGTERM  # with that torchrun itself ends the others


def _end_as_the_ranks(complaints: str, passed: list[int], status: int) -> NoReturn:
    """Ranks that left no word: stopped in order, or killed. torchrun itself always ends with 1."""
    root = STATUS.search(complaints)
    code = int(root.group(2)) if root else 0
    if passed:
        raise SystemExit(128 + passed[0])
    if code in IN_ORDER:
        raise SystemExit(code)
    if code < 0:
        why = ": the kernel does so when the memory of the machine is full" if code == -signal.SIGKILL else ""
        raise UserError(
            f"rank {root.group(1)} was ended by {signal.Signals(-code).name}{why}; type resume= and the run folder to "
            "go on from its last checkpoint",
            128 - code,
        )
    sys.stderr.write(harmless(complaints))
    raise RankFailed(status if status > 0 else 128 - status, f"a rank ended with status {code or status}")


@contextmanager
def _passed_on(process: subprocess.Popen):
    """Signals to this process go to the ranks, which save and end; yields the list of those that came."""
    before, passed = {}, []

    def pass_on(number: int, frame) -> None:
        passed.append(number)
        process.send_signal(number)

    if threading.current_thread() is threading.main_thread():
        before = {signal.Signals[name]: signal.signal(signal.Signals[name], pass_on) for name in PASSED_ON}
    yield passed
    for number, handler in before.items():
        signal.signal(number, handler)


def tell(error: BaseException) -> int:
    """From a rank to the process that started it: why the run ends. Returns the rank's exit status.

    Where a word is left already this rank only fails after another one, and keeps quiet.
    """
    kind, message, trace = "refused", str(error), ""
    if isinstance(error, OutOfMemory):
        kind = "memory"
    elif not isinstance(error, UserError):
        kind, message = "failed", f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
    status, folder = getattr(error, "status", 1), Path(os.environ[RUN_VARIABLE])
    word = LastWord(kind, message, status, rank(), trace, getattr(error, "rows", 0))
    if not last_word.leave(folder, word) and last_word.heard(folder) is None:
        print(trace or f"error: {message}", file=sys.stderr)
    return status


def tell_hang(run: RunFolder, message: str) -> None:
    """From a watchdog whose process is about to end: to whoever started the ranks, else to the terminal."""
    message += f"; the stacks are above; type resume={run.path} to go on from the last checkpoint"
    if RUN_VARIABLE in os.environ:
        last_word.leave(run.path, LastWord("hung", message, HUNG, rank()))
    else:
        print(f"error: {message}", file=sys.stderr, flush=True)
    run.update_summary(status="failed", reason=message)


def another_failed(run: RunFolder) -> bool:
    """Whether a rank has left its word."""
    return RUN_VARIABLE in os.environ and (run / last_word.FILE).exists()


def deadline(limit: str | int | float | None) -> float | None:
    """When, of time.time, a run with this `time_limit` that begins now is to stop. SLURM says when it ends its job."""
    if handed := os.environ.get(DEADLINE_VARIABLE):
        return float(handed)
    if limit != "auto":
        duration = seconds(limit, "time_limit")
        return time.time() + duration if duration is not None else None
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(end) - BEFORE_SLURM if end.isdigit() else None


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
    # Long: the watchdog says more than a time-out in an exchange does, and a rank that still builds may take its time.
    rank_zero_only.rank = rank()  # Lightning has read it at its import, which a forked process did before it was a rank
    with _ended_by_signals():
        dist.init_process_group("nccl" if hardware.accelerator == "gpu" else "gloo", timeout=timedelta(hours=2))


@contextmanager
def _ended_by_signals():
    """The system's own way with signals: Python's handlers do not run while a rank waits, inside of C++, for another.

    That one may have been stopped already and never come.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {signal.Signals[name]: signal.signal(signal.Signals[name], signal.SIG_DFL) for name in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
