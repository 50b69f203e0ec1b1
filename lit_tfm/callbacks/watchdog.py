"""A run that hangs says where, and ends: which ranks are behind, and the Python stack of every one of them.

A thread in every rank looks whether the rank still makes marks (Whereabouts), and tells the others over a connection
of its own to the store through which the ranks found each other: it needs nothing of the main thread, which hangs.
A collective's own time-out (30 minutes) would only say that one was waited for.
"""

import faulthandler
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist
from lightning import Callback, Trainer

from lit_tfm.callbacks.whereabouts import Whereabouts
from lit_tfm.errors import HUNG

LONGEST_TICK = 5.0  # seconds between two looks
GRACE = 20.0  # seconds: for the others to be told and to write down their stacks, or to fail by themselves
EXCHANGES = f"torch{os.sep}distributed"  # in the path of a file: what is there waits for other ranks
DEBUGGERS = ("pdb", "bdb", "pydevd", "debugpy", "IPython.core.debugger", "_pydevd_bundle")


@dataclass(frozen=True)
class Place:
    """Where a rank said it was. `beat` rises while its watchdog lives."""

    count: int
    beat: int
    where: str

    @classmethod
    def read(cls, text: bytes) -> "Place":
        count, beat, where = text.decode().split(" ", 2)
        return cls(int(count), int(beat), where)


class Watchdog(Callback):
    """Ends the run with status HUNG where this rank has made no mark for `limit` seconds.

    tell:    called with the sentence, by one of the ranks, before the end.
    others:  called at every look; whether another rank has failed, so that this one should end as well.
    """

    def __init__(
        self, where: Whereabouts, limit: float, tell: Callable[[str], None], others: Callable[[], bool] = lambda: False
    ) -> None:
        self.where, self.limit, self.tell, self.others = where, limit, tell, others
        self._watch: Watch | None = None

    def setup(self, trainer: Trainer, pl_module, stage: str) -> None:
        self._end()
        self._watch = Watch(self, trainer.global_rank, trainer.world_size)
        self._watch.start()

    def teardown(self, trainer: Trainer, pl_module, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module, exception: BaseException) -> None:
        if self._watch is not None and self._watch.ending.is_set():
            self._watch.join()  # it ends the process; what failed here is an exchange with a rank that has ended so
        self._end()

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.over.set()
            self._watch = None


class Watch(threading.Thread):
    """The thread of one rank, for one fit or test."""

    numbers = itertools.count()

    def __init__(self, owner: Watchdog, rank: int, world: int) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.owner, self.rank, self.world = owner, rank, world
        self.over = threading.Event()
        self.ending = threading.Event()  # the run hangs, and this process is about to end
        self.tick = min(LONGEST_TICK, owner.limit / 10)
        self.key = f"lit_tfm/watchdog/{next(Watch.numbers)}"
        self.store = dist.distributed_c10d._get_default_store().clone() if world > 1 else None
        self.beat = 0

    def run(self) -> None:
        count, since = -1, time.monotonic()
        looked = since
        failed: float | None = None
        while not self.over.wait(self.tick):
            now = time.monotonic()
            if now - looked > 2 * self.tick + 1:  # this very process was stopped (SIGSTOP, a suspended machine)
                since += now - looked
            looked = now
            if self.owner.where.count != count:
                count, since = self.owner.where.count, now
            if failed is None and self.owner.others():
                failed = now
            if failed is not None and now - failed > GRACE:  # the exchange it waits in will not end
                os._exit(1)
            if self._told_to_end() or (now - since > self.owner.limit and not debugged()):
                self._end()

    # ---- between ranks ----------------------------------------------------------------------------------------

    def _told_to_end(self) -> bool:
        """Say where this rank is; whether another one has found that the run hangs."""
        if self.store is None:
            return False
        self.beat += 1
        where = self.owner.where
        try:
            self.store.set(f"{self.key}/{self.rank}", f"{where.count} {self.beat} {where.tell()}")
            return self.store.check([f"{self.key}/hung"])
        except RuntimeError:  # the store went with the rank or the agent that held it
            return False

    def _places(self) -> dict[int, Place]:
        if self.store is None:
            return {0: Place(self.owner.where.count, 0, self.owner.where.tell())}
        keys = {rank: f"{self.key}/{rank}" for rank in range(self.world)}
        return {rank: Place.read(self.store.get(key)) for rank, key in keys.items() if self.store.check([key])}

    def _end(self) -> None:
        """Every rank writes down its stack, one of them says what is known; then all end."""
        self.ending.set()
        try:
            with suppress(RuntimeError):  # the store is gone, as _speak will find
                self._mark("hung")
            dump_stacks(f"rank {self.rank}, {self.owner.where.tell()}")
            try:
                self._speak()
            except RuntimeError:  # so each rank that is left speaks for itself
                own = Place(self.owner.where.count, self.beat, self.owner.where.tell())
                told = sentence({self.rank: own}, {self.rank: innermost()}, self.owner.limit)
                lost = f"; rank {self.rank} can't ask the others: the process through which they met is gone"
                finish_within(5, self.owner.tell, told + lost)
        finally:
            os._exit(HUNG)

    def _speak(self) -> None:
        """By the first rank to come here. Raises RuntimeError where the store went before that one was found."""
        speaks = self.store is None or self._gathered()
        answering = self._answering
        if speaks:
            finish_within(5, self.owner.tell, sentence(self._places(), answering, self.owner.limit))
        with suppress(RuntimeError):  # the store may end with a rank that has heard it
            self._mark("told") if speaks else self._wait_for(["told"], 5)
            self._mark(f"heard/{self.rank}")
            if self.rank == 0 and self.store is not None:  # it may hold the store, and goes last
                self._wait_for([f"heard/{rank}" for rank in answering], 5)

    def _gathered(self) -> bool:
        """Wait until all stacks are written, or long enough; whether this rank is the one to speak."""
        self._mark(f"dumped/{self.rank}", innermost())
        self._wait_for([f"dumped/{rank}" for rank in range(self.world)], GRACE)
        return self.store.add(f"{self.key}/speaker", 1) == 1

    @property
    def _answering(self) -> dict[int, str]:
        """The ranks that have written their stacks, with the innermost line of each."""
        if self.store is None:
            return {0: innermost()}
        keys = {rank: f"{self.key}/dumped/{rank}" for rank in range(self.world)}
        return {rank: self.store.get(key).decode() for rank, key in keys.items() if self.store.check([key])}

    def _mark(self, name: str, value: str = "1") -> None:
        if self.store is not None:
            self.store.set(f"{self.key}/{name}", value)

    def _wait_for(self, names: list[str], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.store.check([f"{self.key}/{name}" for name in names]):
            time.sleep(0.1)


def sentence(places: dict[int, Place], answering: dict[int, str], limit: float) -> str:
    """Who is behind, by phase and step; under FSDP, where all wait in the same phase, by who is in no exchange."""
    begun = f"the run hangs: nothing was done for {limit:g} s"
    if silent := sorted(set(places) - set(answering)):
        told = "; ".join(f"rank {rank} does not answer, last seen at {places[rank].where}" for rank in silent)
        return f"{begun}; {told}{_others(places, silent)}"
    least, most = (f(place.count for place in places.values()) for f in (min, max))
    behind = [rank for rank in sorted(places) if places[rank].count == least]
    if least == most:
        behind = [rank for rank in behind if EXCHANGES not in answering[rank]]
        if len(places) == 1 or len(behind) in (0, len(places)):
            who = "it is" if len(places) == 1 else f"all {len(places)} ranks are"
            return f"{begun}; {who} at {next(iter(places.values())).where}, in {answering[min(places)]}"
    told = "; ".join(f"rank {rank} is behind at {places[rank].where}, in {answering[rank]}" for rank in behind)
    return f"{begun}; {told}{_others(places, behind)}"


def innermost() -> str:
    """Where in the source the main thread is."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "no frame"


def _others(places: dict[int, Place], named: list[int]) -> str:
    rest = sorted({place.where for rank, place in places.items() if rank not in named})
    return f"; the others wait at {', '.join(rest)}" if rest else ""


def dump_stacks(title: str) -> None:
    """The Python stack of every thread of this process to stderr, in one piece where that is possible."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read()
    stream = sys.__stderr__ or sys.stderr
    try:
        os.write(stream.fileno(), f"--- {title}\n".encode() + text)
    except (OSError, ValueError, AttributeError):
        sys.stderr.write(f"--- {title}\n{text.decode(errors='replace')}")


def debugged() -> bool:
    """Whether a person stands still in a debugger."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(DEBUGGERS):
            return True
        frame = frame.f_back
    return False


def finish_within(seconds: float, call: Callable[[str], None], argument: str) -> None:
    """A disk that hangs must not keep the end from coming."""
    thread = threading.Thread(target=call, args=(argument,), daemon=True)
    thread.start()
    thread.join(seconds)
