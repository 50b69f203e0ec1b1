"""One run from its config to its result: choose the machine, build, make the folder, fit, test, tell.

Nothing is written before everything has been built, so that a refused run leaves nothing behind.
"""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from lit_tfm import hardware as machines
from lit_tfm import holding, launch, memory, screens
from lit_tfm.build import Parts, build, build_trainer, data_record, resume_checkpoint
from lit_tfm.callbacks.checkpoint_files import newest
from lit_tfm.callbacks.checkpoints import Checkpoints
from lit_tfm.callbacks.preemption import Stopped, leaving_at_once
from lit_tfm.callbacks.record import Record
from lit_tfm.callbacks.tensorboard import HParams
from lit_tfm.callbacks.trial import TrialReport
from lit_tfm.callbacks.whereabouts import Whereabouts
from lit_tfm.config import default_output_dir
from lit_tfm.console import Console
from lit_tfm.errors import UserError
from lit_tfm.models.cost import parameters
from lit_tfm.resuming import check_same_run, find_checkpoint, newest_time
from lit_tfm.runs import ENDED, Result, RunFolder
from lit_tfm.storage import refusal
from lit_tfm.tasks.base import Task
from lit_tfm.tasks.budget import seconds
from lit_tfm.tasks.nonfinite import NonFiniteLoss
from lit_tfm.tasks.out_of_memory import OutOfMemory, let_go, ran_out


class Session:
    """The state that the steps of one run share."""

    def __init__(self, cfg: DictConfig, quiet: bool = False, callbacks: Iterable[Callback] = ()) -> None:
        self.cfg, self.callbacks = cfg, list(callbacks)
        self.console = Console(quiet=quiet or launch.rank() > 0)
        self.hardware = machines.choose(cfg.trainer)
        launch.check(self.hardware)
        self.resume = launch.handed_on() or self._find_checkpoint()
        self.run_folder: RunFolder | None = None  # what this session has begun, should it have to begin again
        self.hold: holding.Hold | None = None  # of the folder it trains in
        self.deadline = launch.deadline(cfg.get("time_limit", "auto"))
        seconds(cfg.get("watchdog"), "watchdog")  # what is no time is refused before the data are read
        if self.resume is not None and cfg.get("auto_batch"):  # what did not fit then does not fit now
            stored = OmegaConf.select(RunFolder.open(self.resume.parent.parent).config(), "trainer.accumulate")
            cfg.trainer.accumulate = max(cfg.trainer.accumulate, stored or 1)

    def run(self) -> Result:
        """Raises SystemExit with the status of docs/reliability.md where the run was stopped."""
        hush()
        try:
            with leaving_at_once():
                self._hold_what_is_there()
                return self._run_in_memory()
        except Stopped as stop:
            self._say(stop)
            raise SystemExit(stop.status) from None
        finally:
            if self.hold is not None:
                self.hold.close()

    def _say(self, stop: Stopped) -> None:
        begun = self.run_folder.path if self.run_folder else self.resume.parent.parent if self.resume else None
        if begun is not None and newest_time(begun):
            line = f"{stop}; go on with:\npython -m lit_tfm.train resume={begun}"
        else:
            line = f"{stop}; there is no checkpoint yet: type the command again"
        self.console.print(line, soft_wrap=True)

    def _run_in_memory(self) -> Result:
        """With `auto_batch`: again with smaller micro-batches as long as memory runs out."""
        while True:
            try:
                return self._run()
            except OutOfMemory as error:
                if not self._may_halve(error):
                    raise
                self._halve(error)
                let_go(error)

    def _run(self) -> Result:
        if self.cfg.dry_run:
            return self._dry_run()
        if self.resume is not None:
            check_same_run(self.cfg, RunFolder.open(self.resume.parent.parent))
        with self._memory_explained():
            parts = build(self.cfg, self.hardware)
        parts.deadline = self.deadline
        step = self._check_resume(parts) if self.resume else 0 if self.run_folder else None
        if self.resume and parts.task.progress.fraction(step) >= 1.0 and self._ended():
            return self._already_finished(parts, step)
        if self.hardware.world_size > 1 and not launch.started_from_outside():
            return self._spawn(parts)
        if self.hardware.world_size > 1:
            launch.join(self.hardware)
        return self._fit(parts, self._folder(), step)

    # ---- the checkpoint ------------------------------------------------------------------------------------

    def _find_checkpoint(self) -> Path | None:
        """All ranks get the one that rank 0 finds: a file may be whole for one of them and broken for another."""
        if not self._one_of_several() or self.cfg.resume is None or self.cfg.dry_run:
            return find_checkpoint(self.cfg, self.console.print)
        launch.join(self.hardware)
        return launch.agreed(lambda: find_checkpoint(self.cfg, self.console.print))

    def _check_resume(self, parts: Parts) -> int:
        """The step to go on at. Raises UserError where the data, the tokenizer or the weights are not the run's."""
        forced = bool(self.cfg.get("resume_force"))
        check_same_run(self.cfg, RunFolder.open(self.resume.parent.parent), parts.data.records())
        return resume_checkpoint(self.resume, parts.task, forced)

    # ---- memory --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _memory_explained(self, parts: Parts | None = None, where: Whereabouts | None = None):
        """Raises OutOfMemory, with all sizes, for what any allocator says."""
        try:
            yield
        except Exception as error:
            said = None if isinstance(error, UserError) else ran_out(error)
            if said is None:
                raise
            let_go(error)  # a sentence needs room as well
            raise memory.explain(said, self.cfg, self.hardware, parts, where) from said

    def _may_halve(self, error: OutOfMemory) -> bool:
        """Whether this process is the one that starts the run again, and there is something to halve."""
        return bool(self.cfg.get("auto_batch")) and error.rows > 1 and not self._one_of_several()

    def _halve(self, error: OutOfMemory) -> None:
        """Twice the micro-batches, each half as large: the global batch, and with it the run, stays what it is."""
        self.cfg.trainer.accumulate *= 2
        parts = self.cfg.trainer.accumulate
        self.console.print(f"{str(error).partition(';')[0]}; going on with trainer.accumulate={parts}", soft_wrap=True)
        if self.run_folder is None:
            return
        self.run_folder.write_config(self.cfg)
        self.run_folder.update_summary(status="running", reason=None, accumulate=parts)
        folder = self.run_folder / "checkpoints"
        self.resume = newest(folder)[0] if newest_time(self.run_folder.path) else None

    # ---- the folder ----------------------------------------------------------------------------------------

    def _one_of_several(self) -> bool:
        """Whether this is a rank, started by torchrun, srun or lit_tfm itself."""
        return self.hardware.world_size > 1 and launch.started_from_outside()

    def _hold_what_is_there(self) -> None:
        """The folder the run goes on or starts again in, before anything there is used. Raises UserError as `_take`."""
        if folder := os.environ.get(launch.RUN_VARIABLE):
            self.hold = holding.share(Path(folder))
        elif self.cfg.resume is not None and not self.cfg.dry_run:
            there = self.resume.parent.parent if self.resume else self.cfg.output_dir
            if self._one_of_several():
                launch.agreed(lambda: self._take(there))
            else:
                self._take(there)

    def _take(self, folder: Path | str | None) -> None:
        """Nobody else trains in the folder, if there is one, until this session ends. Raises UserError if one does."""
        if self.hold is None and folder is not None and Path(folder).is_dir():
            self.hold = holding.take(Path(folder))
            if self.hold.handle is None:
                notice = f"{folder}: no lock can be had there, so nothing but you keeps a second process out"
                self.console.print(notice, soft_wrap=True)

    def _folder(self) -> RunFolder:
        """The run's folder; all ranks get rank 0's."""
        if folder := os.environ.get(launch.RUN_VARIABLE):
            self.run_folder = RunFolder(folder)
        elif self._one_of_several():
            self.run_folder = RunFolder(launch.agreed(lambda: str(self._make_folder().path)))
            self.hold = self.hold or holding.share(self.run_folder.path)
        return self.run_folder or self._make_folder()

    def _make_folder(self) -> RunFolder:
        if self.run_folder is None:
            self.run_folder = self._new_folder()
        return self.run_folder

    def _new_folder(self) -> RunFolder:
        if self.resume is not None:
            run = RunFolder(self.resume.parent.parent)
            run.keep_inside()
            return run
        wanted = self.cfg.output_dir
        if wanted is not None and self.cfg.resume == "auto":
            self._take(wanted)
            RunFolder(wanted).clear_beginning()
        run = RunFolder.create(wanted or default_output_dir(self.cfg), exact=wanted is not None)
        self._take(run.path)
        return run

    # ---- ways to run ---------------------------------------------------------------------------------------

    def _spawn(self, parts: Parts) -> Result:
        if self.callbacks:
            raise UserError(
                f"trainer.devices={self.hardware.devices}: callbacks can't be handed to ranks in processes of their "
                "own; put them into the config (callbacks=), or start with torchrun"
            )
        run = self._make_folder()
        with self._ending_recorded(run):
            run.write_origin(self.cfg, self.hardware.name)
            launch.spawn(run.path.resolve(), self.hardware, self.resume, self.deadline, self.hold)
        summary = run.read_json("summary.json")
        return Result(run.path, summary["status"], summary["metrics"], summary["best"], summary)

    def _ended(self) -> bool:
        """Whether the run to go on with said so; one killed at its very end still has to."""
        return RunFolder(self.resume.parent.parent).status() in ENDED

    def _already_finished(self, parts: Parts, step: int) -> Result:
        run = RunFolder(self.resume.parent.parent)
        summary = run.read_json("summary.json")
        self.console.print(
            f"{run.path} is finished: {step} steps. To go on, type a larger trainer.max_steps or budget."
        )
        result = Result(run.path, summary["status"], summary["metrics"], summary["best"], summary)
        screens.after(self.console, self.cfg, result, parts.task.headline)
        return result

    def _dry_run(self) -> Result:
        cfg = self.cfg
        parts = build(cfg, self.hardware)
        screens.before(self.console, cfg, parts, folder=None)
        parts.hardware = replace(self.hardware, strategy="single", devices=1, num_nodes=1)  # its step needs one process
        parts.task.progress.max_steps = 1
        parts.task.progress.bound(None, None)
        trainer = build_trainer(cfg, parts, run=None)
        with self._memory_explained(parts, whereabouts(trainer)):
            trainer.fit(parts.task, datamodule=parts.data)
        seconds = parts.task.progress.seconds
        self.console.print(
            f"one step: {seconds:.2f} s (the first is the slowest), loss {float(parts.task.last_loss):.4f}, "
            f"{parts.task.progress.tokens:,} tokens; nothing was written"
        )
        return Result(None, "dry run", {"train/loss": float(parts.task.last_loss)})

    def _fit(self, parts: Parts, run: RunFolder, step: int | None) -> Result:
        try:
            trainer = build_trainer(self.cfg, parts, run, step, self.callbacks)
        except UserError:
            if launch.rank() == 0:
                run.remove_if_empty()
            raise
        with self._ending_recorded(run, trainer, parts.task), self._memory_explained(parts, whereabouts(trainer)):
            self._open(trainer, parts, run, resumed=step is not None)
            trainer.fit(parts.task, datamodule=parts.data, ckpt_path=self.resume, weights_only=True)
            return self._finish(trainer, parts, run)

    def _open(self, trainer: Trainer, parts: Parts, run: RunFolder, resumed: bool) -> None:
        """Write down what the run is, and tell it, before it begins."""
        if not trainer.is_global_zero:
            return
        cfg, task = self.cfg, parts.task
        if launch.RUN_VARIABLE not in os.environ:
            run.write_origin(cfg, self.hardware.name)
        task.facts.tokenizer.save(run / "tokenizer.json")
        run.write_json("data.json", data_record(parts.data))
        values = {} if resumed else record_of(trainer).values(trainer, task)
        name = parts.data.records()["name"]
        facts = {"parameters": parameters(task), "flops_per_token": task.flops_per_token}
        facts |= {"monitor": task.monitor, "mode": task.mode, "data": name, "seed": cfg.seed}
        run.update_summary(status="running", reason=None, **values, **facts)
        screens.before(self.console, cfg, parts, run.path)

    @contextlib.contextmanager
    def _ending_recorded(self, run: RunFolder, trainer: Trainer | None = None, task: Task | None = None):
        """Leave a true status behind however the run ends. Without a trainer its ranks are other processes."""

        def record(status: str, reason: str | None = None) -> None:
            if trainer is None or trainer.is_global_zero:
                values = record_of(trainer).values(trainer, task) if trainer is not None else {}
                with contextlib.suppress(OSError):  # where nothing can be written, that can't be written either
                    run.update_summary(**values, status=status, reason=reason)

        try:
            yield
        except Stopped:
            record("stopped")
            raise
        except NonFiniteLoss as error:
            record("failed", str(error))
            last = run / "checkpoints" / "last.ckpt"
            kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was taken yet"
            raise UserError(f"{error}; {kept}; try a lower optimizer.lr, or trainer.precision=32") from error
        except launch.RankFailed as failure:
            record("failed", failure.reason)
            raise
        except SystemExit:  # stopped ranks, which record it themselves where they had begun to train
            record("stopped")
            raise
        except BaseException as error:
            full = None if isinstance(error, UserError) else refusal(error)
            record("failed", full or f"{type(error).__name__}: {error}")
            if full is None:
                raise
            raise UserError(
                f"{run.path}: {full}; checkpoints written before are whole; make room, then type resume={run.path}"
            ) from error

    def _finish(self, trainer: Trainer, parts: Parts, run: RunFolder) -> Result:
        # Of a pruned one the test split is not measured: its sweep has no use for it.
        status = "pruned" if any(isinstance(c, TrialReport) and c.pruned for c in trainer.callbacks) else "finished"
        values = record_of(trainer).values(trainer, parts.task)
        metrics = dict(values["metrics"])
        if self.cfg.test and status == "finished":
            metrics |= self._test(trainer, parts, run)
        values["metrics"] = metrics
        if trainer.is_global_zero:
            hparams = next(c for c in trainer.callbacks if isinstance(c, HParams))
            hparams.finish(trainer, values["best"])
            run.update_summary(**values, status=status)
            for logger in trainer.loggers:
                logger.finalize("success")
        summary = run.read_json("summary.json") if trainer.is_global_zero else values
        result = Result(run.path, status, metrics, values["best"], summary)
        if trainer.is_global_zero:
            screens.after(self.console, self.cfg, result, parts.task.headline)
        return result

    def _test(self, trainer: Trainer, parts: Parts, run: RunFolder) -> dict[str, float]:
        """The test split, with the best checkpoint's weights; with the last where no validation gave a number."""
        best = run / "checkpoints" / "best.ckpt"
        kept = any(isinstance(c, Checkpoints) for c in trainer.callbacks)
        there = kept and trainer.strategy.broadcast(best.exists())  # as rank 0 sees it
        if kept and not there:
            self.console.print(f"{best}: there is none, so the last weights are tested", soft_wrap=True)
        where = str(best) if there else None
        trainer.test(parts.task, datamodule=parts.data, ckpt_path=where, verbose=False, weights_only=True)
        return dict(parts.task.measured)


def whereabouts(trainer: Trainer) -> Whereabouts:
    return next(callback for callback in trainer.callbacks if isinstance(callback, Whereabouts))


def record_of(trainer: Trainer) -> Record:
    return next(callback for callback in trainer.callbacks if isinstance(callback, Record))


def hush() -> None:
    """Lightning's advice of the day is not this run's news."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    threading.excepthook = _quiet


def _quiet(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer hands what its disk answers to the next write as well: once is enough."""
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)
