"""The command of a sweep: opens the study, keeps workers running, shows how it goes, and writes what came out.

Workers are started from a forkserver that has imported everything once. One that is killed is started again; when the
supervisor itself is killed, they notice and stop in order. Ctrl-C once: trials write their checkpoints and the sweep
can be gone on with; twice: everything ends at once.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import optuna
import torch
from rich.live import Live

from lit_tfm import runs
from lit_tfm.console import Console
from lit_tfm.errors import UserError
from lit_tfm.search import best, nursery, report, slots, status, worker
from lit_tfm.search.attempt import Objective
from lit_tfm.search.outcomes import Outcome, outcome
from lit_tfm.search.patience import Patient
from lit_tfm.search.settings import SweepConfig, masked
from lit_tfm.search.storage import JOURNAL, reachable
from lit_tfm.search.study import SharedStudy, open_study, salt
from lit_tfm.search.worker import STOPPED, Task

DEATHS = 5  # of a worker, one after the other, without a trial ended in between
REFRESH = 1.0  # seconds


@dataclass(frozen=True)
class Swept:
    """How a sweep's command ended: done, stopped, timeout, exhausted (the sampler has no more points)."""

    folder: Path
    study: optuna.Study
    status: str
    exit_status: int = 0


def warm_up() -> None:
    """Start importing, in a process of its own, what workers and trials need."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lit_tfm.search.worker", *nursery.modules()])
    multiprocessing.forkserver.ensure_running()


def run_sweep(
    settings: SweepConfig, objective: Objective | None = None, quiet: bool = False, pages: bool = True
) -> Swept:
    """Run the sweep until its trials have ended, or go on with it. Blocks. `pages`: write report.html at the end.

    `objective(cfg, callbacks) -> Result, number, numbers or {metric: number}` trains a trial; None: `train`. It must be
    importable, for it runs in other processes. Raises UserError for what can't be started; then nothing was created.
    """
    places = _places(settings)
    warm_up()
    return Supervisor(settings, objective, Console(quiet=quiet), places, pages).run()


def _places(settings: SweepConfig) -> list[str | None]:
    devices = slots.visible_devices(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return slots.slots(settings.workers, devices, settings.gpus_per_trial, settings.trials_per_gpu)


class Slot:
    """A place for one worker after the other."""

    def __init__(self, number: int, devices: str | None) -> None:
        self.number, self.devices = number, devices
        self.process: multiprocessing.process.BaseProcess | None = None
        self.link: Connection | None = None
        self.deaths, self.seen = 0, 0  # one after the other; trials that had ended at the last


class Supervisor:
    def __init__(
        self,
        settings: SweepConfig,
        objective: Objective | None,
        console: Console,
        places: list[str | None],
        pages: bool = True,
    ) -> None:
        self.settings, self.objective, self.console, self.pages = settings, objective, console, pages
        self.folder = settings.folder
        self.slots = [Slot(number, devices) for number, devices in enumerate(places)]
        self.context = multiprocessing.get_context("forkserver")
        self.signals: list[int] = []
        self.mistake: str | None = None
        self.exhausted: str | None = None
        self.timed_out = False
        self.told: set[int] = set()
        self.began = time.monotonic()

    def run(self) -> Swept:
        check_folder(self.folder)
        storage, resumed = open_study(self.settings, self.folder)
        self.storage = Patient(storage)
        self.study = SharedStudy(self.settings, self.storage)
        self._write_folder()
        self._announce(resumed)
        with salt(storage, self.settings, self.folder) as self.salt, self._signals(), self._shown() as show:
            self._start_all()
            self._watch(show)
        return self._finish()

    # ---- the folder ------------------------------------------------------------------------------------------

    def _write_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # with a database, nothing has made it yet
        except OSError as error:
            raise UserError(
                f"output_dir={self.folder}: can't be written ({error.strerror}); name one that can"
            ) from error
        folder = runs.RunFolder(self.folder)
        runs.write_text(folder / "sweep.yaml", status_yaml(self.settings))
        typed = runs.command()
        for word in sys.argv[1:]:
            if word.startswith("storage="):  # it may hold a password
                typed = typed.replace(shlex.quote(word), shlex.quote(f"storage={masked(self.settings.storage)}"))
        runs.write_text(folder / "command.txt", typed + "\n")
        machine = f"{os.cpu_count()} CPU cores, {len(self.slots)} workers"
        folder.write_json("environment.json", runs.environment(machine))

    def _announce(self, resumed: bool) -> None:
        settings, trials = self.settings, self.study.trials()
        ended = sum(trial.state.is_finished() for trial in trials)
        self.told = {trial.number for trial in trials if trial.state.is_finished()}
        going = f"{settings.n_trials} trials"
        if resumed:
            going = f"goes on: {ended} of {going} have ended"
        workers = f"{settings.workers} worker{'s' * (settings.workers > 1)}"
        self.console.print(f"sweep {settings.name}: {going}; {workers}; {self.folder}", highlight=False, soft_wrap=True)
        if settings.storage and settings.storage.startswith("sqlite") and settings.workers > 1:
            self.console.print(
                "SQLite locks the whole study for every write; leave storage= out for a journal, or use PostgreSQL"
            )

    # ---- workers ---------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        for slot in self.slots:
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        settings = self.settings
        task = Task(
            settings=settings.to_plain(),
            storage=settings.storage,
            allow_targets=settings.allow_targets,
            folder=str(self.folder.resolve()),
            place=(self.salt, slot.number),
            threads=slots.threads(len(self.slots), asked=os.environ.get("OMP_NUM_THREADS")),
            devices=slot.devices,
            objective=self.objective,
        )
        slot.link, theirs = self.context.Pipe()
        slot.process = self.context.Process(target=worker.main, args=(task, theirs), name=f"worker {slot.number}")
        slot.process.start()
        theirs.close()

    def _running(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.process is not None]

    def _watch(self, show) -> None:
        """Until no worker runs and none is to be started."""
        while self._running():
            ends = [slot.process.sentinel for slot in self._running()] + [slot.link for slot in self._running()]
            wait(ends, REFRESH)
            for slot in self._running():
                self._hear(slot)
                if slot.process.exitcode is not None:
                    self._ended(slot)
            self._check_time()
            show()

    def _hear(self, slot: Slot) -> None:
        with contextlib.suppress(EOFError, OSError):
            while slot.link.poll():
                kind, text = slot.link.recv()
                self.mistake = text if kind == "mistake" else self.mistake
                self.exhausted = text if kind == "exhausted" else self.exhausted

    def _ended(self, slot: Slot) -> None:
        """A worker ended: was that its end, or is another to take its place?"""
        status_, slot.process = slot.process.exitcode, None
        self._hear(slot)
        slot.link.close()
        if self.mistake and not self.signals:
            self._stop(signal.SIGTERM)
        if status_ in (0, 2, STOPPED) or self.signals or self.mistake or self.timed_out:
            return
        ended = len(self._finished())
        slot.deaths, slot.seen = (1 if ended > slot.seen else slot.deaths + 1), ended
        how = f"by {signal.Signals(-status_).name}" if status_ < 0 else f"with status {status_}"
        if slot.deaths >= DEATHS:
            again = f"that was the {slot.deaths}th time in a row, so not again; see {self.folder}/workers"
        else:
            again = "another takes its place"
            self._start(slot)
        self.console.print(f"a worker ended {how}: {again}", highlight=False, soft_wrap=True)

    def _finished(self) -> set[int]:
        return {trial.number for trial in self.study.trials() if trial.state.is_finished()}

    def _check_time(self) -> None:
        limit = self.settings.timeout
        if limit and not self.timed_out and not self.signals and time.monotonic() - self.began > limit:
            self.timed_out = True
            self.console.print(f"timeout={limit:g} s is over: running trials write their checkpoints", highlight=False)
            self._stop(signal.SIGTERM)

    # ---- stopping --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self):
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # SLURM's warning is the last
        before = {}
        with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's there
            before = {number: signal.signal(number, self._asked) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _asked(self, number: int, frame) -> None:
        self.signals.append(number)
        if len(self.signals) == 1:
            self._stop(signal.SIGTERM)
            print("\nstopping: running trials write their checkpoints; once more stops at once", flush=True)
        else:
            self._stop(signal.SIGKILL)
            os._exit(128 + number)

    def _stop(self, number: int) -> None:
        for slot in self._running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.process.pid, number)

    # ---- showing ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _shown(self):
        """A live table on a terminal; elsewhere one line for each trial that has ended."""
        if not self.console.is_terminal or self.console.quiet:
            yield self._lines
            self._lines()
            return
        with Live(console=self.console, auto_refresh=False) as live:
            yield lambda: live.update(status.table(self.folder, self.study.study), refresh=True)

    def _lines(self) -> None:
        for trial in self.study.trials():
            if trial.state.is_finished() and trial.number not in self.told:
                self.told.add(trial.number)
                self.console.print(line(outcome(self.folder, trial)), highlight=False, soft_wrap=True, markup=False)

    # ---- the end ---------------------------------------------------------------------------------------------

    def _finish(self) -> Swept:
        if self.mistake:
            raise UserError(self.mistake)
        how = self._how()
        with reachable(self.settings.storage, self.folder):
            study = self.study.study
            chosen = best.write(self.folder, study, self.settings)
            if how != "stopped" and self.pages:
                page = report.write(self.folder, study, self.settings)
                self.console.print(f"report      {page}", highlight=False, soft_wrap=True)
        if how == "exhausted":
            self.console.print(self.exhausted, highlight=False)
        if chosen is not None:
            self.console.print(f"best        {best.command(self.folder)}", highlight=False, soft_wrap=True)
        return Swept(self.folder, study, how, self._exit_status(how, chosen))

    def _how(self) -> str:
        if self.signals:
            return "stopped"
        if self.study.done():
            return "done"
        return "timeout" if self.timed_out else "exhausted" if self.exhausted else "stopped"

    def _exit_status(self, how: str, chosen: Path | None) -> int:
        left = self.settings.n_trials - len(self._finished())
        if how == "stopped":
            self.console.print(f"stopped; {left} trials have not ended; the same command goes on", highlight=False)
            return 128 + self.signals[0] if self.signals else STOPPED
        return 0


def line(trial: Outcome) -> str:
    """What became of a trial, in one line."""
    last = f"at {status.number_text(trial.reported[max(trial.reported)])}" if trial.reported else ""
    told = " ".join(map(status.number_text, trial.values)) or (last if trial.state == "pruned" else trial.reason)
    params = status.params_text(trial.searched, status.short_names(list(trial.searched)))
    return f"trial {trial.number:<4} {trial.state:<9} {told}   {params}"


def status_yaml(settings: SweepConfig) -> str:
    """sweep.yaml: a password in the storage's URL is masked."""
    return runs.OmegaConf.to_yaml(runs.OmegaConf.create(settings.to_plain()))


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds something else than this sweep, or leads elsewhere."""
    runs.RunFolder(folder).keep_inside()
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if "sweep.yaml" not in there and {name for name in there if not name.strip(".").startswith(JOURNAL)}:
        raise UserError(f"output_dir={folder}: it holds something that is no sweep; name another folder")
