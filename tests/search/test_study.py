"""The study that workers share: exactly n_trials, each claimed once, refused where it is another sweep's."""

import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import optuna
import pytest
from optuna.trial import TrialState

from lit_tfm.errors import UserError
from lit_tfm.holding import birth, machine
from lit_tfm.search.holders import Holder
from lit_tfm.search.storage import FileLock, connect, shown
from lit_tfm.search.study import SharedStudy, Signature, open_study, salt
from lit_tfm.search.supervisor import warm_up

GONE = Holder("gone", machine(), 2**22 + 1, 1.0, folder="")  # a process id beyond the largest


@pytest.fixture
def opened(a_sweep):
    """`opened("n_trials=9") -> (settings, study)`, as the supervisor opens it."""

    def made(*words: str):
        settings = a_sweep(*words)
        storage, _ = open_study(settings, settings.folder)
        return settings, SharedStudy(settings, storage)

    return made


def signature(worker: str = "me") -> Signature:
    return Signature(worker, machine(), os.getpid(), birth(os.getpid()), Path("outputs"))


def processes(count: int, target, *args) -> list:
    """What `target(place, link, *args)` sent from each of several processes that were let go at the same moment."""
    warm_up()
    context = multiprocessing.get_context("forkserver")
    links, started = [], []
    for place in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(place, theirs, *args))
        process.start()
        links.append(ours)
        started.append(process)
    for link in links:
        assert link.recv() == "ready"
    for link in links:
        link.send("go")
    answers = [link.recv() for link in links]
    for process in started:
        process.join()
    return answers


def take_all(place: int, link, plain: dict) -> None:
    """Claim and tell until nothing is left."""
    from lit_tfm.search.settings import SweepConfig

    settings = SweepConfig.from_plain(plain)
    study = SharedStudy(settings, connect(settings.storage, settings.folder), ("", place))
    link.send("ready")
    link.recv()
    mine = []
    while (claimed := study.claim(signature(str(place)))) is not None:
        trial, holder = claimed
        mine.append((trial.number, holder.attempt, trial.params))
        study.tell(trial, TrialState.COMPLETE, [1.0])
    link.send(mine)


def test_every_number_below_n_trials_is_claimed_once_by_several_processes(opened) -> None:
    settings, study = opened("n_trials=24")
    taken = [one for mine in processes(4, take_all, settings.to_plain()) for one in mine]
    assert sorted(number for number, _, _ in taken) == list(range(24))
    assert {attempt for _, attempt, _ in taken} == {1}
    assert len({json.dumps(params) for _, _, params in taken}) == 24
    assert study.done()
    assert study.claim(signature()) is None
    assert len(study._all()) == 24  # and none was proposed in vain


def test_what_was_proposed_too_much_waits_for_a_larger_n_trials(opened) -> None:
    settings, study = opened("n_trials=2")
    for _ in range(4):
        study.propose(study._all())
    assert [study.claim(signature())[0].number for _ in range(2)] == [0, 1]
    assert study.claim(signature()) is None
    more = SharedStudy(replace(settings, n_trials=3), study.storage)
    assert more.claim(signature())[0].number == 2


def adopt(place: int, link, plain: dict) -> None:
    from lit_tfm.search.settings import SweepConfig

    settings = SweepConfig.from_plain(plain)
    study = SharedStudy(settings, connect(None, settings.folder), ("", place))
    link.send("ready")
    link.recv()
    claimed = study.claim(signature(str(place)))
    link.send((claimed[1].worker, claimed[1].attempt, claimed[1].lost) if claimed else None)
    if claimed:
        time.sleep(2)  # alive while the others look


def test_a_lost_trial_is_taken_over_by_one_worker(opened) -> None:
    settings, study = opened("n_trials=1")
    trial, _ = study.claim(signature())
    study.hold(trial, GONE)
    answers = [one for one in processes(5, adopt, settings.to_plain()) if one is not None]
    assert len(answers) == 1
    assert answers[0][1:] == (2, 1)  # its second attempt; one was lost
    names = [found.study_name for found in study.storage.get_all_studies()]
    assert names == [settings.name]  # what decided is gone


def test_who_lives_keeps_its_trial_and_who_gave_it_up_does_not(opened) -> None:
    _, study = opened("n_trials=1")
    trial, holder = study.claim(signature())
    assert study.claim(signature("other")) is None
    study.hold(trial, replace(holder, released=True))
    again, taken = study.claim(signature("other"))
    assert (again.number, taken.attempt, taken.lost) == (0, 2, 0)
    assert again.params == trial.params


def test_a_worker_of_another_machine_is_lost_when_its_sign_of_life_stays_the_same(opened, monkeypatch) -> None:
    monkeypatch.setattr("lit_tfm.search.study.GRACE", 0.5)
    _, study = opened("n_trials=1")
    trial, holder = study.claim(signature())
    far = replace(holder, machine="far/away/1")
    study.hold(trial, far)
    for count in range(4):  # it lives
        study.storage.set_trial_user_attr(trial._trial_id, "beat", count)
        assert study.claim(signature("other")) is None
        time.sleep(0.2)
    time.sleep(0.5)
    assert study.claim(signature("other"))[1].attempt == 2


def test_a_trial_claimed_by_nobody_known_is_not_lost_for_good(opened, monkeypatch) -> None:
    monkeypatch.setattr("lit_tfm.search.study.UNSIGNED", 0.3)
    _, study = opened("n_trials=1")
    study.propose([])
    study.storage.set_trial_state_values(study.trials()[0]._trial_id, TrialState.RUNNING)
    assert study.claim(signature()) is None
    time.sleep(0.4)
    assert study.claim(signature())[1].attempt == 1


def test_a_process_is_known_by_its_start(monkeypatch) -> None:
    me = Holder("me", machine(), os.getpid(), birth(os.getpid()), "")
    assert me.here
    assert me.alive
    assert not replace(me, birth=me.birth - 1).alive  # its number was given to another process
    assert not replace(me, released=True).alive
    assert not GONE.alive
    assert Holder.of({"holder": me.record()}) == me
    child = os.fork()
    if child == 0:
        os._exit(0)
    while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert birth(child) is None  # nothing runs there any more
    os.waitpid(child, 0)


# ---- proposing ---------------------------------------------------------------------------------------------------


def test_what_is_not_feasible_costs_no_number(opened) -> None:
    words = ("n_trials=12", "space.model.n_layers={low: 1, high: 8}", "constraints=['model.n_layers <= 2']")
    _, study = opened(*words)
    for number in range(12):
        trial, _ = study.claim(signature())
        assert trial.number == number
        assert trial.params["model.n_layers"] <= 2
        study.tell(trial, TrialState.COMPLETE, [trial.params["optimizer.lr"]])
    assert study.done()


def test_the_same_seed_draws_the_same_and_two_workers_do_not(opened, a_sweep) -> None:
    def drawn(folder: str, place: tuple) -> list[dict]:
        settings = a_sweep(f"output_dir={folder}")
        storage, _ = open_study(settings, settings.folder)
        study = SharedStudy(settings, storage, place)
        study.propose([])
        study.propose(study._all())
        return [trial.params for trial in study._all()]

    first = opened()[0].folder.parent
    one = drawn(first / "a", ("", 0))
    assert drawn(first / "b", ("", 0)) == one
    assert drawn(first / "c", ("", 1))[0] != one[0]
    assert drawn(first / "d", ("elsewhere", 0))[0] != one[0]


def test_commands_at_the_same_time_are_told_apart_and_one_alone_draws_the_same_again(opened) -> None:
    settings, study = opened()
    for _ in range(2):
        with (
            salt(study.storage, settings, settings.folder) as first,
            salt(study.storage, settings, settings.folder) as second,
        ):
            assert first == ""
            assert second
    other = settings.folder.parent / "other"
    other.mkdir()
    with salt(study.storage, settings, other) as elsewhere:
        assert elsewhere


def test_the_sampler_learns_from_what_was_told(opened) -> None:
    words = ("n_trials=40", "sampler={_target_: optuna.samplers.TPESampler, n_startup_trials: 10}")
    _, study = opened(*words)
    missed = []
    for _ in range(40):
        trial, _ = study.claim(signature())
        missed.append(abs(math.log10(trial.params["optimizer.lr"]) + 2))
        study.tell(trial, TrialState.COMPLETE, [missed[-1]])
    assert fmean(missed[25:]) < 0.6  # drawn at random: 0.83; by Optuna's own loop: 0.3 to 0.5


def test_a_report_is_kept_once_and_answered_each_time(opened) -> None:
    pruner = "pruner={_target_: optuna.pruners.ThresholdPruner, upper: 5.0}"
    _, study = opened("n_trials=2", pruner)
    trial, _ = study.claim(signature())
    assert not study.report(trial, 1, 1.0)
    assert study.report(trial, 2, 9.0)
    assert study.report(trial, 2, 1.0)  # told before, by an attempt that was killed
    assert study.storage.get_trial(trial._trial_id).intermediate_values == {1: 1.0, 2: 9.0}
    assert study.tell(trial, TrialState.PRUNED)
    assert not study.tell(trial, TrialState.COMPLETE, [0.0])  # an end is told once
    ended = study.trials()[0]
    assert ended.state == TrialState.PRUNED
    assert ended.value == 9.0
    assert study.report(trial, 3, 1.0)  # to a worker that had been taken for dead: it may stop


# ---- opening -----------------------------------------------------------------------------------------------------


def test_a_changed_space_is_refused_with_the_differences(opened, a_sweep) -> None:
    opened()
    with pytest.raises(UserError) as refused:
        open_study(a_sweep("space.optimizer.lr.high=0.5"), a_sweep().folder)
    assert "\n" not in str(refused.value)
    assert "space.optimizer.lr" in str(refused.value)
    assert '"high": 0.1' in str(refused.value)
    assert '"high": 0.5' in str(refused.value)
    with pytest.raises(UserError, match=r"metric.*val/loss.*val/accuracy"):
        open_study(a_sweep("metric=val/accuracy"), a_sweep().folder)
    assert open_study(a_sweep("n_trials=99", "workers=3", "timeout=1h"), a_sweep().folder)[1]


def test_a_study_that_is_no_sweep_is_left_alone(a_sweep, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lit_tfm.search.study.MAKING", 0.2)
    storage = f"sqlite:///{tmp_path}/mine.db"
    optuna.create_study(study_name="tried", storage=storage)
    with pytest.raises(UserError, match="holds a study 'tried' that is no sweep"):
        open_study(a_sweep(f"storage={storage}"), tmp_path)


def test_where_nothing_is_feasible_no_study_is_made(a_sweep, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/shared.db"
    with pytest.raises(UserError, match="feasible"):
        open_study(a_sweep(f"storage={storage}", "constraints=['parameters <= 10']"), tmp_path)
    assert not (tmp_path / "shared.db").exists()


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("postgresql://me:secret@127.0.0.1:9/none", "can't be used"),
        ("mysql+nodriver://me:secret@127.0.0.1/none", "can't be used|driver is not installed"),
        ("sqlite:////nowhere/at/all/study.db", "can't be used"),
        ("ftp://me:secret@127.0.0.1/none", "can't be used"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_told_in_one_line_without_its_password(
    a_sweep, tmp_path: Path, storage: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as refused:
        open_study(a_sweep(f"storage='{storage}'"), tmp_path)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_read_only_storage_is_told_and_nothing_made(a_sweep, tmp_path: Path) -> None:
    made = f"sqlite:///{tmp_path}/shared.db"
    open_study(a_sweep(f"storage={made}", "name=before"), tmp_path)
    for name in ("before", "after"):
        read_only = f"sqlite:///file:{tmp_path}/shared.db?mode=ro&uri=true"
        with pytest.raises(UserError, match="is read-only"):
            open_study(a_sweep(f"storage='{read_only}'", f"name={name}"), tmp_path)
    assert optuna.get_all_study_names(made) == ["before"]


def test_a_journal_where_no_file_can_be(a_sweep, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be kept there"):
        open_study(a_sweep(f"output_dir={tmp_path}/file/sweep"), tmp_path / "file" / "sweep")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    assert shown("postgresql://me:secret@host/db", tmp_path) == "postgresql://me:***@host/db"


# ---- the journal -------------------------------------------------------------------------------------------------


def hold_the_lock(place: int, link, journal: str) -> None:
    FileLock(Path(journal)).acquire()
    link.send("ready")
    link.recv()
    link.send(os.getpid())
    time.sleep(600)


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    journal.write_text("")
    warm_up()
    context = multiprocessing.get_context("forkserver")
    link, theirs = context.Pipe()
    process = context.Process(target=hold_the_lock, args=(0, theirs, str(journal)))
    process.start()
    link.recv()
    link.send("go")
    os.kill(link.recv(), signal.SIGKILL)
    process.join()
    began = time.monotonic()
    assert FileLock(journal).acquire()
    assert time.monotonic() - began < 2


def test_half_a_line_that_a_full_disk_left_does_not_end_the_study(opened) -> None:
    settings, study = opened("n_trials=2")
    first, _ = study.claim(signature())
    with open(settings.folder / "study.journal", "ab") as file:
        file.write(b'{"op_code":5,"worker_id":"gone')
    assert SharedStudy(settings, connect(None, settings.folder)).trials()[0].number == 0
    study.tell(first, TrialState.COMPLETE, [1.0])
    fresh = SharedStudy(settings, connect(None, settings.folder))
    assert fresh.trials()[0].value == 1.0
    assert fresh.claim(signature())[0].number == 1
