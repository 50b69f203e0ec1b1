"""The study as all workers of a sweep share it: opened once, proposed to, claimed from, told.

Optuna does the searching (samplers, pruners, storages); here stands what a sweep promises beyond a study. Exactly the
trials 0 .. n_trials-1 run, each one parameter set in one folder. A trial stays RUNNING between its attempts and is told
its end once. Whatever several processes on several machines could do at the same time is decided by something the
storage does atomically: WAITING becomes RUNNING for one of them, and a study's name can be taken by one of them.
"""

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from lit_tfm.errors import UserError
from lit_tfm.search.holders import GRACE, UNSIGNED, Holder, Observer, sign_of_life
from lit_tfm.search.outcomes import read_yaml, trial_folder
from lit_tfm.search.settings import SweepConfig
from lit_tfm.search.space import Space
from lit_tfm.search.storage import connect, is_journal, journal_path, reachable, shown

OPEN = (TrialState.WAITING, TrialState.RUNNING)
REPEATS = 30  # draws that only repeat an earlier trial before one is accepted
WIDE = 100  # infeasible draws of the sampler in a row before it is drawn at random instead
HOPELESS = 2000  # draws without a feasible one
LARGEST_GRID = 20_000  # points that can be gone through
MAKING = 5.0  # seconds between a study's creation by another machine and its description
# These number their points themselves, from one seed.
SEQUENCES = ("QMCSampler", "GridSampler", "BruteForceSampler")


class Exhausted(Exception):
    """The sampler has no further point."""


class SharedStudy:
    """`place` tells apart workers that propose at the same moment: (salt of the command, number of the worker)."""

    def __init__(self, settings: SweepConfig, storage: BaseStorage, place: tuple[str, int] = ("", 0)) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.settings, self.storage, self.place = settings, storage, place
        self.study_id = storage.get_study_id_from_name(settings.name)
        # Its sampler is never asked: proposals come from a study in memory.
        self.study = optuna.load_study(
            study_name=settings.name,
            storage=storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=settings.build_pruner() or optuna.pruners.NopPruner(),
        )
        self.beats = not is_journal(settings.storage)
        self._observer = Observer()

    # ---- looking ---------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """Those that count, by number; not to be changed."""
        return self._all()[: self.settings.n_trials]

    def _all(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    def done(self) -> bool:
        trials = self.trials()
        return len(trials) == self.settings.n_trials and all(trial.state.is_finished() for trial in trials)

    # ---- claiming --------------------------------------------------------------------------------------------

    def claim(self, sign: "Signature") -> tuple[FrozenTrial, Holder] | None:
        """A trial that is now this worker's alone: a lost one first, then a waiting one, then a new one.

        None where there is nothing to do at the moment.
        Raises Exhausted where the sampler has no further point, UserError where no draw is feasible.
        """
        while True:
            everything = self._all()
            trials = everything[: self.settings.n_trials]
            for trial in trials:
                if trial.state == TrialState.RUNNING and (claimed := self._adopt(trial, sign)):
                    return claimed
            for trial in trials:
                if trial.state == TrialState.WAITING and (claimed := self._start(trial, sign)):
                    return claimed
            if len(everything) >= self.settings.n_trials:
                return None
            with self._turn():
                everything = self._all()
                if len(everything) < self.settings.n_trials:
                    self.propose(everything)

    def _start(self, trial: FrozenTrial, sign: "Signature") -> tuple[FrozenTrial, Holder] | None:
        try:
            if not self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        holder = sign.holder(trial.number)
        self.hold(trial, holder)
        return self.storage.get_trial(trial._trial_id), holder

    def hold(self, trial: FrozenTrial, holder: Holder) -> None:
        self.storage.set_trial_user_attr(trial._trial_id, "holder", holder.record())

    def holder(self, trial: FrozenTrial) -> Holder | None:
        return Holder.of(self.storage.get_trial(trial._trial_id).user_attrs)

    def beat(self, trial: FrozenTrial, count: int) -> None:
        """A sign of life for other machines. A journal keeps every line, so there a file's time is the sign."""
        if self.beats:
            self.storage.set_trial_user_attr(trial._trial_id, "beat", count)

    # ---- adopting --------------------------------------------------------------------------------------------

    def _adopt(self, trial: FrozenTrial, sign: "Signature") -> tuple[FrozenTrial, Holder] | None:
        if not self.lost(trial):
            return None
        before = Holder.of(trial.user_attrs)
        with self._alone(trial, before.attempt if before else 0) as mine:
            if not mine:
                return None
            now = self.storage.get_trial(trial._trial_id)
            if now.state != TrialState.RUNNING or Holder.of(now.user_attrs) != before:
                return None  # somebody else was quicker
            holder = sign.holder(trial.number, before)
            self.hold(trial, holder)
        return self.storage.get_trial(trial._trial_id), holder

    def lost(self, trial: FrozenTrial) -> bool:
        """Whether nobody runs this RUNNING trial any more."""
        holder = Holder.of(trial.user_attrs)
        if holder is None:  # killed between the claim and its record
            return self._observer.unchanged(trial.number, None) > UNSIGNED
        if holder.released:
            return True
        if holder.here:
            return not holder.alive
        return self._observer.unchanged(trial.number, sign_of_life(trial.user_attrs, holder)) > GRACE

    @contextlib.contextmanager
    def _alone(self, trial: FrozenTrial, attempt: int) -> Iterator[bool]:
        """Whether this process alone may take over: a study of a name can be created once, in every storage."""
        name = f"{self.settings.name}: trial {trial.number} after attempt {attempt} is taken over"
        try:
            lock = self.storage.create_new_study(self.study.directions, name)
        except DuplicatedStudyError:
            if self._observer.unchanged(name, None) > GRACE:  # whoever took it died at it
                with contextlib.suppress(KeyError):
                    self.storage.delete_study(self.storage.get_study_id_from_name(name))
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(KeyError):
                self.storage.delete_study(lock)

    # ---- telling ---------------------------------------------------------------------------------------------

    def report(self, trial: FrozenTrial, step: int, value: float) -> bool:
        """Keep what a trial reached at a rung; whether it is to be pruned. Asked again, it answers again."""
        known = self.storage.get_trial(trial._trial_id)
        if known.state.is_finished():  # by somebody who took this worker for dead
            return True
        if step not in known.intermediate_values:
            self.storage.set_trial_intermediate_value(trial._trial_id, step, value)
            known = self.storage.get_trial(trial._trial_id)
        if self.settings.pruner is None or len(self.study.directions) > 1:
            return False
        return bool(self.study.pruner.prune(self.study, copy.deepcopy(known)))

    def tell(self, trial: FrozenTrial, state: TrialState, values: list[float] | None = None, **attrs: Any) -> bool:
        """The end of a trial, with what is to be remembered of it; False where it had ended already."""
        if state == TrialState.PRUNED:
            reported = self.storage.get_trial(trial._trial_id).intermediate_values
            last = reported[max(reported)] if reported else float("nan")
            values = [last] if last == last else None
        try:
            for key, value in attrs.items():
                self.storage.set_trial_user_attr(trial._trial_id, key, value)
            self.storage.set_trial_state_values(trial._trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True

    # ---- proposing -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One proposal after the other, where a file can be locked; over a database two may meet: one waits unused."""
        if self.beats:
            yield
            return
        journal = journal_path(self.settings.storage, self.settings.folder)
        with open(journal.with_name(f".{journal.name}.turn"), "ab") as file:  # the lock goes with it
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def propose(self, trials: list[FrozenTrial]) -> None:
        """Add one WAITING trial, whose parameters are drawn knowing all `trials`."""
        shadow = self._shadow(trials)
        before = self.storage.get_study_system_attrs(self.study_id)
        for key, value in before.items():
            shadow._storage.set_study_system_attr(shadow._study_id, key, value)
        drawn = draw(self.settings, shadow, {_key(trial.params) for trial in trials})
        for key, value in shadow._storage.get_study_system_attrs(shadow._study_id).items():
            if before.get(key) != value:  # where a sequence has got to
                self.storage.set_study_system_attr(self.study_id, key, value)
        self.study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=drawn.params,
                distributions=drawn.distributions,
                system_attrs=drawn.system_attrs,
            )
        )

    def _shadow(self, trials: list[FrozenTrial]) -> optuna.Study:
        """The study in memory, for drawing: what is not feasible there costs no number here."""
        seed = self.settings.seed
        if str(self.settings.sampler["_target_"]).rpartition(".")[2] not in SEQUENCES:
            seed = _mixed(seed, len(trials), *self.place)
        shadow = shadow_study(self.settings, self.study.directions, seed)
        for trial in trials:
            known = copy.copy(trial)
            # What waits will run: the liar counts it as what does.
            known.state = TrialState.RUNNING if trial.state in OPEN else trial.state
            shadow._storage.create_new_trial(shadow._study_id, template_trial=known)
        return shadow


class Signature:
    """Signs for a worker what it takes: `root` is the sweep's folder as this machine sees it."""

    def __init__(self, worker: str, machine: str, pid: int, birth: float | None, root: Path) -> None:
        self.worker, self.machine, self.pid, self.birth, self.root = worker, machine, pid, birth, root

    def holder(self, number: int, before: Holder | None = None) -> Holder:
        """The next attempt. A folder of this sweep that this machine sees is gone on with, wherever it lies."""
        own = trial_folder(self.root, number).resolve()
        folder = before.folder if before and self._of_this_sweep(before.folder, number) else str(own)
        attempt = before.attempt + 1 if before else 1
        lost = before.lost + (not before.released) if before else 0
        return Holder(self.worker, self.machine, self.pid, self.birth, folder, attempt, lost)

    def _of_this_sweep(self, folder: str, number: int) -> bool:
        """What no checkpoint is left of is removed before a trial starts again, and a study may be somebody else's: the
        folder it names has to be this trial's, of a sweep with the same name."""
        path = Path(folder)
        sweep, own = path.parent.parent, read_yaml(self.root / "sweep.yaml").get("name")
        if not path.is_dir() or path.is_symlink() or path != trial_folder(sweep, number):
            return False
        return own is not None and read_yaml(sweep / "sweep.yaml").get("name") == own


# ---- opening ---------------------------------------------------------------------------------------------------


def open_study(settings: SweepConfig, folder: Path) -> tuple[BaseStorage, bool]:
    """The storage with the sweep's study in it, and whether it was there before.

    Raises UserError, before anything is created, for a storage that can't be used and for a study of another space or
    objective. What is wrong with the space itself has been found by `settings.load`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = connect(settings.storage, folder)
    with reachable(settings.storage, folder):
        known = {study.study_name for study in storage.get_all_studies()}
        if settings.name not in known and _create(settings, storage, folder):
            return storage, False
        study_id = storage.get_study_id_from_name(settings.name)
        check_same(settings, storage, study_id, shown(settings.storage, folder))
        # The first thing that is written, and never the same twice: a read-only storage is found out here.
        storage.set_study_user_attr(study_id, "opened", time.time())
    return storage, True


def _create(settings: SweepConfig, storage: BaseStorage, folder: Path) -> bool:
    """False where another machine was quicker."""
    try:
        study_id = storage.create_new_study(directions(settings), settings.name)
    except DuplicatedStudyError:
        return False
    storage.set_study_system_attr(study_id, "study:metric_names", list(settings.metric))
    for key, value in {"home": home(folder), "sweep": settings.fingerprint()}.items():
        storage.set_study_user_attr(study_id, key, value)
    return True


def home(folder: Path) -> str:
    """Where the command runs that made the study."""
    return f"{socket.gethostname()}:{folder.resolve()}"


@contextlib.contextmanager
def salt(storage: BaseStorage, settings: SweepConfig, folder: Path) -> Iterator[str]:
    """What keeps commands that run at the same time from drawing the same; "" for the one that made the study.

    So a sweep of one command draws the same when it is done again. The lock tells commands in one folder apart.
    """
    attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(settings.name))
    held = os.open(folder / ".first", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield "" if attrs.get("home", home(folder)) == home(folder) else home(folder)
    except BlockingIOError:
        yield f"{home(folder)}:{os.getpid()}"
    finally:
        os.close(held)


def check_same(settings: SweepConfig, storage: BaseStorage, study_id: int, where: str) -> None:
    """Raises UserError where the study was made for another space or objective, with the differences."""
    began = time.monotonic()
    while (made_for := storage.get_study_user_attrs(study_id).get("sweep")) is None:
        if time.monotonic() - began > MAKING:
            raise UserError(
                f"{where} holds a study {settings.name!r} that is no sweep; type name=ANOTHER or storage=ANOTHER"
            )
        time.sleep(0.1)
    if differing := Space.differences(made_for, json.loads(json.dumps(settings.fingerprint()))):
        raise UserError(
            f"{where} holds a sweep {settings.name!r} of another space ({'; '.join(differing)}); change it back to "
            "go on with that one, or give this one a place of its own: output_dir=... or name=..."
        )


# ---- drawing ---------------------------------------------------------------------------------------------------


def draw(settings: SweepConfig, shadow: optuna.Study, taken: set[str]) -> FrozenTrial:
    """A feasible point of the space that no trial has yet, if one is found soon.

    Raises Exhausted where a sampler has gone through all its points, UserError where nothing drawn is feasible.
    """
    repeats, reason, sampler = 0, "", shadow.sampler
    grid, tree = (isinstance(sampler, getattr(optuna.samplers, name)) for name in ("GridSampler", "BruteForceSampler"))
    for attempt in range(LARGEST_GRID if grid else HOPELESS):
        if (grid and sampler.is_exhausted(shadow)) or (tree and repeats == REPEATS):
            raise Exhausted(f"{type(sampler).__name__} has gone through its points; {len(taken)} are trials")
        if attempt == WIDE and not grid and not tree:
            shadow.sampler = optuna.samplers.RandomSampler(seed=_mixed(settings.seed, len(taken)))
        trial = shadow.ask()
        params = settings.space.sample(trial)
        refused = settings.space.feasible(params)
        if refused is None and (_key(params) not in taken or (repeats >= REPEATS and not grid)):
            return shadow._storage.get_trial(trial._trial_id)
        repeats += refused is None
        reason = refused or reason
        shadow._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    raise UserError(f"space: none of {HOPELESS} configurations drawn from it is feasible ({reason}); widen it")


def shadow_study(settings: SweepConfig, goals: list[optuna.study.StudyDirection], seed: int) -> optuna.Study:
    return optuna.create_study(
        storage=InMemoryStorage(),
        study_name=settings.name,  # Hyperband tells its brackets by it
        directions=goals,
        sampler=replace(settings, seed=seed).build_sampler(),
        pruner=settings.build_pruner() or optuna.pruners.NopPruner(),
    )


def directions(settings: SweepConfig) -> list[optuna.study.StudyDirection]:
    return [optuna.study.StudyDirection[str(word).upper()] for word in settings.direction]


def _mixed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def _key(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True, default=str)
