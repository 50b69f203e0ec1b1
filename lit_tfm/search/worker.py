"""A worker: claims a trial, runs its attempts in processes of their own, tells the study how it ended; and again.

It has one thread and one loop. In it come together: what the trial's processes report, the end of those processes, the
supervisor's end, signals, and the clock. Stopping in order (SIGTERM, or the supervisor gone) lets the trial write its
checkpoint and leaves it to be gone on with; it has not failed.
"""

import contextlib
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from lit_tfm.errors import UserError
from lit_tfm.holding import birth, machine
from lit_tfm.search import tensorboard, trial_folder
from lit_tfm.search.attempt import STACK, Objective, Order, perform
from lit_tfm.search.endings import Ending, of_exception, of_status, retries
from lit_tfm.search.holders import BEAT, Holder, sign_file
from lit_tfm.search.nursery import Nursery
from lit_tfm.search.patience import connect_patiently
from lit_tfm.search.settings import SweepConfig
from lit_tfm.search.study import Exhausted, SharedStudy, Signature

IDLE = 0.5  # seconds between two looks for something to do
MERCY = 20.0  # seconds between SIGTERM and SIGKILL after a time-out
LOSSES = 10  # workers that may die under one trial
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
STOPPED = 128 + signal.SIGTERM
FAIL = TrialState.FAIL
WORDS = {
    "nan": "not a number",
    "oom": "out of memory",
    "timeout": "time-out",
    "killed": "killed",
    "refused": "refused",
    "crash": "crashed",
}


@dataclass(frozen=True)
class Task:
    """What a worker needs to know, as the supervisor sends it."""

    settings: dict  # SweepConfig.to_plain()
    storage: str | None
    allow_targets: tuple[str, ...]
    folder: str
    place: tuple[str, int]
    threads: int
    devices: str | None
    objective: Objective | None

    def config(self) -> SweepConfig:
        return replace(SweepConfig.from_plain(self.settings, self.storage), allow_targets=self.allow_targets)


def main(task: Task, supervisor: Connection) -> None:
    """The process of a worker. Exit status: 0 nothing left to do, 143 stopped, 2 a mistake, 1 a defect."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C is the supervisor's to pass on
    name = f"{socket.gethostname()}-{os.getpid()}"
    _write_to(Path(task.folder) / "workers" / f"{name}.log")
    nursery = Nursery(perform)
    status = 1
    try:
        status = Worker(task, name, nursery, supervisor).run()
    except (Exhausted, UserError) as error:
        print(f"{'end' if isinstance(error, Exhausted) else 'error'}: {error}", flush=True)
        status = 0 if isinstance(error, Exhausted) else 2
        _say(supervisor, "exhausted" if isinstance(error, Exhausted) else "mistake", str(error))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say(supervisor: Connection, *words: str) -> None:
    with contextlib.suppress(OSError):  # it is gone
        supervisor.send(words)


def _write_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(target, number)
    os.close(target)


class Worker:
    def __init__(self, task: Task, name: str, nursery: Nursery, supervisor: Connection) -> None:
        self.task, self.name, self.nursery, self.supervisor = task, name, nursery, supervisor
        self.settings = task.config()
        self.study = SharedStudy(self.settings, connect_patiently(task.storage, Path(task.folder)), task.place)
        self.signature = Signature(name, machine(), os.getpid(), birth(os.getpid()), Path(task.folder))
        self.stopping = False
        self._listen()
        self._heed_signals()

    def _listen(self) -> None:
        """A socket for the trials' processes, where only this user can reach it."""
        self.place = tempfile.TemporaryDirectory(prefix="lit_tfm-")
        self.address = str(Path(self.place.name) / "worker")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen(64)

    def _heed_signals(self) -> None:
        self.woken, waking = socket.socketpair()
        self._waking = waking
        for end in (self.woken, waking):
            end.setblocking(False)
        signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda *_: self._stop())

    def _stop(self) -> None:
        self.stopping = True

    # ---- the loop --------------------------------------------------------------------------------------------

    def run(self) -> int:
        try:
            while not self.stopping:
                claimed = self.study.claim(self.signature)
                if claimed is not None:
                    self._try(*claimed)
                elif self.study.done():
                    return 0
                else:
                    self.wait([], IDLE)
            return STOPPED
        finally:
            self.place.cleanup()

    def wait(self, others: list, seconds: float) -> list:
        """Those of `others` that are ready; the supervisor and signals are looked after here."""
        ready = wait([*others, self.supervisor, self.woken], max(0.0, seconds))
        if self.woken in ready:
            self.woken.recv(4096)
        if self.supervisor in ready:
            try:
                self.supervisor.recv()
            except (EOFError, OSError):
                self.stopping = True
                time.sleep(0.01)
        return [one for one in ready if one in others]

    # ---- a trial ---------------------------------------------------------------------------------------------

    def _try(self, trial: FrozenTrial, holder: Holder) -> None:
        """All attempts at a trial that this worker makes."""
        folder = Path(holder.folder)
        lock = trial_folder.take(folder)
        if lock is None:  # somebody still writes there, whatever the study says
            self.study.hold(trial, replace(holder, released=True))
            self.wait([], IDLE * 20)
            return
        try:
            self._attempts(trial, holder, folder)
        finally:
            lock.close()

    def _attempts(self, trial: FrozenTrial, holder: Holder, folder: Path) -> None:
        failures: list[dict] = list(trial.user_attrs.get("failures", []))
        while True:
            if holder.lost > LOSSES:
                ending = Ending("killed", f"{holder.lost} workers died while it ran")
            else:
                ending = self._attempt(trial, holder, folder, failures)
            if ending.kind == "taken":
                return
            if ending.kind == "stopped" and self.stopping:
                return self._release(trial, holder, folder)
            if not ending.failed and ending.kind != "stopped":
                return self._tell(trial, folder, ending, failures)
            failures = [*failures, {"attempt": holder.attempt, "kind": ending.kind, "reason": ending.reason}]
            again = sum(failure["kind"] == ending.kind for failure in failures)
            allowed = LOSSES if ending.kind == "stopped" else retries(self.settings.retries, ending.kind)
            if again > allowed or holder.lost > LOSSES:
                return self._tell(trial, folder, ending, failures)
            print(f"trial {trial.number}: {ending.kind}: {ending.reason}; it is tried again", flush=True)
            holder = replace(holder, attempt=holder.attempt + 1)
            self.study.storage.set_trial_user_attr(trial._trial_id, "failures", failures)
            self.study.hold(trial, holder)
            if self.stopping:
                return self._release(trial, holder, folder)

    def _release(self, trial: FrozenTrial, holder: Holder, folder: Path) -> None:
        self.study.hold(trial, replace(holder, released=True))
        trial_folder.write_record(folder, state="running", reason="stopped; it goes on from its checkpoint", pid=None)

    def _tell(self, trial: FrozenTrial, folder: Path, ending: Ending, failures: list[dict]) -> None:
        """First the folder, then the study: a trial that has ended there has its record."""
        state = STATES.get(ending.kind, FAIL)
        reason = f"{WORDS.get(ending.kind, ending.kind)}: {ending.reason}" if state is FAIL else ending.reason
        word = {"complete": "complete", "pruned": "pruned"}.get(ending.kind, "failed")
        trial_folder.write_record(
            folder,
            state=word,
            **({"value": ending.values[0]} if len(ending.values) == 1 else {}),
            values=ending.values,
            reason=reason,
            kind=ending.kind,
            failures=failures,
            ended=trial_folder.now(),
            pid=None,
        )
        searched = self.settings.space.values(trial.params)
        tensorboard.finish_trial(folder, word, searched, self.settings.metric, ending.values)
        attrs = {"reason": reason, "kind": ending.kind} if reason else {}
        told = self.study.tell(trial, state, ending.values or None, **attrs)
        what = f"{ending.kind} {ending.values or reason}"
        print(f"trial {trial.number}: {what}{'' if told else ' (it had ended already)'}", flush=True)

    # ---- an attempt ------------------------------------------------------------------------------------------

    def _attempt(self, trial: FrozenTrial, holder: Holder, folder: Path, failures: list[dict]) -> Ending:
        trial_folder.write_record(
            folder,
            number=trial.number,
            params=trial.params,
            state="running",
            reason="",
            attempts=holder.attempt,
            worker=self.name,
            machine=holder.machine,
            **({} if (folder / "trial.json").exists() else {"started": trial_folder.now()}),
        )
        try:
            order = self._order(trial, holder, folder, failures)
        except UserError as error:
            refused = of_exception(error)
            (folder / "error.txt").write_text(refused.trace, encoding="utf-8")
            return refused
        return Watch(self, trial, holder, order).run()

    def _order(self, trial: FrozenTrial, holder: Holder, folder: Path, failures: list[dict]) -> Order:
        """Raises UserError where the config of these parameters is refused."""
        settings, runs = self.settings, []
        for seed in settings.seeds or (None,):
            cfg = settings.compose(trial.params, trial.number, seed)
            # Smaller micro-batches after an out-of-memory; the global batch stays.
            cfg.trainer.accumulate *= 2 ** sum(failure["kind"] == "oom" for failure in failures)
            runs.append(("" if seed is None else f"seed-{seed}", cfg))
        trial_folder.write_record(folder, overrides=settings.space.overrides(trial.params))
        return Order(
            number=trial.number,
            attempt=holder.attempt,
            folder=folder,
            runs=runs,
            metrics=list(settings.metric),
            rungs=list(settings.rungs) if settings.rungs else None,
            address=self.address,
            threads=self.task.threads,
            devices=self.task.devices,
            objective=self.task.objective,
            command=f"python -m lit_tfm.train {shlex.join(settings.command_words(trial.params))}",
        )


class Watch:
    """One attempt as its worker sees it: answers its reports, keeps its time, and knows how it ended."""

    def __init__(self, worker: Worker, trial: FrozenTrial, holder: Holder, order: Order) -> None:
        self.worker, self.trial, self.holder, self.order = worker, trial, holder, order
        self.lines: list[Connection] = []
        self.ending: Ending | None = None  # what the attempt itself says
        self.asked: str | None = None  # why it was told to stop
        self.status: int | None = None
        self.began = time.monotonic()
        self.beaten, self.beats = self.began, 0
        self.kill_at: float | None = None

    def run(self) -> Ending:
        self.log_from = _size(self.order.folder / "log.txt")
        try:
            self.pid = self.worker.nursery.start(self.order)
            while self.status is None:
                self._keep_time()
                self._serve(self.worker.wait(self._ends(), self._until_due()))
            self._last_words()
        finally:
            self._clear()
        return self._verdict()

    def _ends(self) -> list:
        return [self.worker.nursery.link, self.worker.listener, *self.lines]

    def _serve(self, ready: list) -> None:
        for end in ready:
            if end is self.worker.listener:
                self.lines.append(Connection(self.worker.listener.accept()[0].detach()))
            elif end is self.worker.nursery.link:
                kind, pid, status = end.recv()
                if kind == "ended" and pid == self.pid:
                    self.status = status
            elif end in self.lines:
                self._hear(end)

    def _hear(self, line: Connection) -> None:
        """One message of one of the attempt's processes."""
        try:
            kind, *said = line.recv()
            if kind == "report":
                line.send(self.worker.study.report(self.trial, *said))
            elif kind == "ended":
                (self.ending,) = said
            elif kind == "hello" and said != [self.order.number, self.order.attempt]:
                self._hang_up(line)  # of an attempt that is over: it ends when its line does
        except (EOFError, OSError):
            self._hang_up(line)

    def _hang_up(self, line: Connection) -> None:
        line.close()
        self.lines.remove(line)

    def _last_words(self) -> None:
        """What was said before the process ended may still lie in its line."""
        for line in list(self.lines):
            while line in self.lines and line.poll(0):
                self._hear(line)

    # ---- time ------------------------------------------------------------------------------------------------

    def _until_due(self) -> float:
        due = [self.beaten + BEAT]
        if self.kill_at is not None:
            due.append(self.kill_at)
        elif self.worker.settings.trial_timeout and self.asked is None:
            due.append(self.began + self.worker.settings.trial_timeout)
        return min(due) - time.monotonic()

    def _keep_time(self) -> None:
        now, limit = time.monotonic(), self.worker.settings.trial_timeout
        if self.worker.stopping and self.asked is None:
            self._ask("stop")
        elif limit and now >= self.began + limit and self.asked is None:
            self._ask("timeout")
            self.kill_at = now + MERCY
        if self.kill_at is not None and now >= self.kill_at:
            trial_folder.end_group(self.pid)
            self.kill_at = now + MERCY
        if now >= self.beaten + BEAT:
            self._beat(now)

    def _ask(self, why: str) -> None:
        """It saves and ends; a process that is still building just ends. What was too slow says where it is."""
        self.asked = why
        with contextlib.suppress(ProcessLookupError):
            if why == "timeout" and self.lines:
                os.kill(self.pid, STACK)
                time.sleep(0.2)  # SIGTERM would be obeyed before the answer is written
            os.kill(self.pid, signal.SIGTERM)

    def _beat(self, now: float) -> None:
        self.beaten, self.beats = now, self.beats + 1
        os.utime(sign_file(self.order.folder))
        current = self.worker.study.holder(self.trial)
        if current is None or (current.worker, current.attempt) != (self.holder.worker, self.holder.attempt):
            self.asked = "taken"  # this worker was taken for dead: what it does now is nobody's
            trial_folder.end_group(self.pid)
        else:
            self.worker.study.beat(self.trial, self.beats)

    # ---- the end ---------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Nothing of this attempt goes on: its group is killed, and ranks end when their lines do."""
        if hasattr(self, "pid"):
            trial_folder.end_group(self.pid)
        for line in list(self.lines):
            self._hang_up(line)

    def _verdict(self) -> Ending:
        if self.asked == "taken":
            return Ending("taken")
        ending = self.ending or of_status(self.status, trial_folder.tail(self.order.folder / "log.txt", self.log_from))
        if self.asked == "timeout" and ending.kind not in ("complete", "pruned"):
            limit = self.worker.settings.trial_timeout
            late = Ending("timeout", f"ran longer than trial_timeout={limit:g} s", trace=ending.trace)
            self._note(late)
            return late
        if self.asked == "stop" and ending.kind in ("killed", "crash") and self.ending is None:
            return Ending("stopped", "stopped")
        if self.ending is None and ending.failed:
            self._note(ending)
        return ending

    def _note(self, ending: Ending) -> None:
        """error.txt for a process that could not write it itself."""
        said = trial_folder.tail(self.order.folder / "log.txt", self.log_from, 4000)
        (self.order.folder / "error.txt").write_text(f"{ending.reason}\n\n{said}", encoding="utf-8")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
