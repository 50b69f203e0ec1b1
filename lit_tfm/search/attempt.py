"""One attempt at a trial, from inside its own process: what it does, and its line to the worker.

The worker alone talks to the study. A trial's process, and every rank it starts, has a connection to the worker: over
it rungs are reported and answered, and when it breaks the worker is gone, and the process ends at once. So no
credential leaves the worker, and nothing goes on writing into a folder that somebody else may take over.
"""

import faulthandler
import io
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning import Callback
from omegaconf import DictConfig

from lit_tfm import hardware
from lit_tfm.callbacks.trial import TrialReport
from lit_tfm.errors import UserError
from lit_tfm.holding import birth, share
from lit_tfm.runs import COMMAND_VARIABLE, ENDED, Result, RunFolder
from lit_tfm.search.endings import Ending, of_exception
from lit_tfm.search.nursery import die_with_parent
from lit_tfm.search.trial_folder import prepare, tail, write_record
from lit_tfm.session import Session

VARIABLE = "LIT_TFM_TRIAL"  # tells the ranks of a trial whose they are
PICTURES = {"samples", "confusion", "attention", "projector"}  # of conf/callbacks/default.yaml
STACK = signal.SIGUSR2  # asks where the process is: answered in its log, whatever it does
STARTERS = ("SLURM_", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
Objective = Callable[..., Any]  # (cfg, callbacks) -> Result, a number, several numbers, or {metric: number}


@dataclass(frozen=True)
class Order:
    """What a trial's process is told. `runs`: (name of the run folder in the trial's, config): one a seed, or one."""

    number: int
    attempt: int
    folder: Path
    runs: list[tuple[str, DictConfig]]
    metrics: list[str]
    rungs: list[float] | None
    address: str
    threads: int
    devices: str | None = None  # CUDA_VISIBLE_DEVICES
    objective: Objective | None = None
    command: str = ""  # what would train this trial alone


class Line:
    """The connection of one process of a trial to the worker."""

    def __init__(self, address: str, number: int, attempt: int) -> None:
        try:
            self.connection = Client(address, family="AF_UNIX")
        except OSError:
            self._end()
        self.connection.send(("hello", number, attempt))
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self.connection.fileno(), 0)  # only that the other end is gone
        poll.poll()
        self._end()

    @staticmethod
    def _end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def report(self, step: int, value: float) -> bool:
        self.connection.send(("report", step, float(value)))
        return self.connection.recv()

    def ended(self, ending: Ending) -> None:
        self.connection.send(("ended", ending))


def perform(order: Order) -> int:
    """All of an attempt, in a fresh process of its own. Returns its exit status."""
    os.setsid()
    die_with_parent()
    _write_to(order.folder / "log.txt")
    faulthandler.register(STACK, file=sys.stderr)
    _surroundings(order)
    line = Line(order.address, order.number, order.attempt)
    began = (order.folder / "log.txt").stat().st_size
    held = share(order.folder)
    write_record(order.folder, pid=os.getpid(), birth=birth(os.getpid()))
    try:
        ending = _runs(order, line)
    except BaseException as error:
        ending = of_exception(error, tail(order.folder / "log.txt", began))
    if ending.trace:
        sys.stderr.write(ending.trace)
        (order.folder / "error.txt").write_text(ending.trace, encoding="utf-8")
    line.ended(ending)
    held.close()
    return 1 if ending.failed else 0


def _write_to(log: Path) -> None:
    """stdout and stderr of this process and its children go to the file."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(target, number)
    os.close(target)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _surroundings(order: Order) -> None:
    """Threads, devices, and no trace of the job the worker itself may be a rank of."""
    for name in [name for name in os.environ if name.startswith(STARTERS)]:
        del os.environ[name]
    if order.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = order.devices
    os.environ[COMMAND_VARIABLE] = order.command  # and not the sweep's, which may hold a password
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(order.threads)
    torch.set_num_threads(order.threads)


def _runs(order: Order, line: Line) -> Ending:
    """One run, or one a seed; the objective is their mean, and between seeds the pruner is asked."""
    reached: list[list[float]] = []
    for place, (name, cfg) in enumerate(order.runs):
        several = len(order.runs) > 1
        cfg.output_dir = str(order.folder / name)
        values = _run(order, cfg, None if several else line)
        if isinstance(values, Ending):
            return values
        reached.append(values)
        last = place + 1 == len(order.runs)
        if several and len(values) == 1 and line.report(place, values[0]) and not last:
            return Ending("pruned", f"pruned after {place + 1} of {len(order.runs)} seeds")
    return Ending("complete", values=[fmean(column) for column in zip(*reached, strict=True)])


def _run(order: Order, cfg: DictConfig, reports: Line | None) -> list[float] | Ending:
    callbacks = [TrialReport(reports.report, order.metrics[0], order.rungs)] if reports and _single(order) else []
    _tell_ranks(order, bool(callbacks))
    leave_out_pictures(cfg, order.command)
    return _values((order.objective or train)(cfg, callbacks=callbacks), order.metrics)


def leave_out_pictures(cfg: DictConfig, command: str) -> None:
    """Those that no word of the sweep asks for: they take longer than a small trial's training."""
    for name in PICTURES & set(cfg.get("callbacks") or ()):
        if f"callbacks.{name}" not in command:
            cfg.callbacks[name] = None


def train(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> Result:
    """The run of a trial: gone on with where it was left, in the folder `cfg` names."""
    folder = Path(cfg.output_dir)
    if (ended := _ended(folder)) is not None:
        return ended
    cfg.resume = str(folder) if prepare(folder) else None
    processes = hardware.choose(cfg.trainer).devices
    if processes > 1:  # they get their callbacks from the environment
        os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
        callbacks = []
    return Session(cfg, callbacks=callbacks).run()


def _single(order: Order) -> bool:
    return len(order.metrics) == 1  # Optuna does not take reports for several objectives


def _ended(folder: Path) -> Result | None:
    """What a run reached that ended before its worker could say so."""
    run = RunFolder(folder)
    if run.status() not in ENDED:
        return None
    summary = run.read_json("summary.json")
    return Result(folder, summary["status"], summary["metrics"], summary["best"], summary)


def _tell_ranks(order: Order, reports: bool) -> None:
    told = {"address": order.address, "number": order.number, "attempt": order.attempt, "folder": str(order.folder)}
    told |= {"metric": order.metrics[0] if reports else None, "rungs": order.rungs}
    os.environ[VARIABLE] = json.dumps(told)


def callbacks_from_environment() -> list[Callback]:
    """For a rank that a trial started: it ends with its worker, and rank 0 reports to it."""
    told = json.loads(os.environ[VARIABLE])
    line = Line(told["address"], told["number"], told["attempt"])
    share(Path(told["folder"]))
    if told["metric"] is None:
        return []
    return [TrialReport(line.report, told["metric"], told["rungs"])]


# ---- values ----------------------------------------------------------------------------------------------------


def _values(result: Any, names: Sequence[str]) -> list[float] | Ending:
    """The objectives, or the ending that keeps them from being there."""
    if isinstance(result, Result) and result.status == "pruned":
        return Ending("pruned")
    found = _measured(result, names)
    for name, value in zip(names, found, strict=True):
        number = _number(value)
        if number is None or number != number or number in (float("inf"), float("-inf")):
            return Ending("nan", f"{name} is {value}")
    return [float(value) for value in found]


def _measured(result: Any, names: Sequence[str]) -> list[Any]:
    """Raises UserError where a metric was not measured."""
    if isinstance(result, Result):
        summary = result.summary
        result = {**summary, **result.metrics, **result.best}
        if summary.get("seconds"):
            result["tokens_per_second"] = summary["tokens"] / summary["seconds"]
    if isinstance(result, dict):
        if missing := [name for name in names if name not in result]:
            there = ", ".join(sorted(key for key, value in result.items() if _number(value) is not None))
            raise UserError(f"metric={missing[0]}: this run does not measure it; there is {there}")
        return [result[name] for name in names]
    values = list(result) if isinstance(result, (list, tuple)) else [result]
    if len(values) != len(names):
        raise UserError(f"the objective gave {len(values)} values for {len(names)} metrics ({', '.join(names)})")
    return values


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
