"""How an attempt at a trial ends, and what follows from it."""

import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from lit_tfm.errors import HUNG, TIME_IS_UP, UserError
from lit_tfm.tasks.base import NonFiniteLoss
from lit_tfm.tasks.out_of_memory import NO_MEMORY, OutOfMemory, ran_out

FAILURES = ("crash", "nan", "oom", "timeout", "killed", "refused")
STOPPED = (TIME_IS_UP, 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)


@dataclass(frozen=True)
class Ending:
    """`kind`: complete, pruned, stopped (in order, to be gone on with), or one of FAILURES."""

    kind: str
    reason: str = ""
    values: list[float] = field(default_factory=list)
    trace: str = ""

    @property
    def failed(self) -> bool:
        return self.kind in FAILURES


def of_exception(error: BaseException, log: str = "") -> Ending:
    """`log`: what the attempt printed, for ranks whose exception stayed in their own process."""
    chain = list(_chain(error))
    trace = "".join(traceback.format_exception(error))
    words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    if isinstance(error, optuna.TrialPruned):
        return Ending("pruned")
    if isinstance(error, OutOfMemory) or ran_out(error):
        return Ending("oom", words, trace=trace)
    if any(isinstance(link, NonFiniteLoss) for link in chain):
        return Ending("nan", " ".join(str(error).split())[:500], trace=trace)
    if isinstance(error, SystemExit):
        return of_status(error.code if isinstance(error.code, int) else 1, log, trace)
    if isinstance(error, UserError) and any(isinstance(link, OSError) for link in chain):
        return Ending("crash", " ".join(str(error).split()), trace=trace)  # a full disk
    if isinstance(error, UserError):
        return Ending("refused", " ".join(str(error).split()), trace=trace)
    return Ending("crash", words, trace=trace)


def of_status(status: int, log: str = "", trace: str = "") -> Ending:
    """What an exit status says; negative: the signal that ended the process."""
    if status == TIME_IS_UP:
        return Ending("stopped", "stopped by time_limit")
    if status == HUNG:
        return Ending("timeout", "it hung (watchdog); log.txt has the stacks", trace=log)
    if status in STOPPED or -status in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        return Ending("stopped", f"stopped by {signal.Signals(status - 128 if status > 0 else -status).name}")
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return Ending("killed", "killed by SIGKILL, perhaps out of memory", trace=trace)
    if log and NO_MEMORY.search(log):
        line = next(line for line in reversed(log.splitlines()) if NO_MEMORY.search(line))
        return Ending("oom", line.strip()[:500], trace=trace or log)
    if status < 0:
        return Ending("crash", f"ended by {signal.Signals(-status).name}", trace=trace or log)
    return Ending("crash", f"ended with status {status}; log.txt has what it printed", trace=trace or log)


def retries(setting: Mapping[str, int], kind: str) -> int:
    """How often a failure of this kind is tried again; what was killed counts as what crashed."""
    return setting.get({"killed": "crash"}.get(kind, kind), 0)


def _chain(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
