"""One run from its config to its result: choose the machine, build, make the folder, fit, test, tell.

Nothing is written before everything has been built, so that a refused run leaves nothing behind.
"""

import contextlib
import errno
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lightning import Callback, Trainer
from omegaconf import DictConfig

from lit_tfm import hardware as machines
from lit_tfm import launch, screens
from lit_tfm.build import Parts, build, build_trainer, data_record, resume_checkpoint
from lit_tfm.callbacks.checkpoints import Checkpoints
from lit_tfm.callbacks.preemption import Stopped
from lit_tfm.callbacks.record import Record
from lit_tfm.callbacks.tensorboard import HParams
from lit_tfm.callbacks.trial import TrialReport
from lit_tfm.config import default_output_dir
from lit_tfm.console import Console
from lit_tfm.errors import UserError
from lit_tfm.models.cost import parameters
from lit_tfm.resuming import check_same_run, find_checkpoint
from lit_tfm.runs import ENDED, Result, RunFolder
from lit_tfm.tasks.nonfinite import NonFiniteLoss

# What a disk, not a defect, answers.
STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO}


class Session:
    """The state that the steps of one run share."""

    def __init__(self, cfg: DictConfig, quiet: bool = False, callbacks: Iterable[Callback] = ()) -> None:
        self.cfg, self.callbacks = cfg, list(callbacks)
        self.console = Console(quiet=quiet or launch.rank() > 0)
        self.hardware = machines.choose(cfg.trainer)
        launch.check(self.hardware)
        self.resume = launch.handed_on() or self._find_checkpoint()

    def run(self) -> Result:
        hush()
        if self.cfg.dry_run:
            return self._dry_run()
        if self.resume is not None:
            check_same_run(self.cfg, RunFolder.open(self.resume.parent.parent))
        parts = build(self.cfg, self.hardware)
        step = self._check_resume(parts) if self.resume else None
        if step is not None and parts.task.progress.fraction(step) >= 1.0 and self._ended():
            return self._already_finished(parts, step)
        if self.hardware.world_size > 1 and not launch.started_from_outside():
            return self._spawn(parts)
        if self.hardware.world_size > 1:
            launch.join(self.hardware)
        return self._fit(parts, self._folder(), step)

    # ---- the checkpoint ------------------------------------------------------------------------------------

    def _find_checkpoint(self) -> Path | None:
        """All ranks get the one that rank 0 finds: a file may be whole for one of them and broken for another."""
        several = self.hardware.world_size > 1 and launch.started_from_outside()
        if not several or self.cfg.resume is None or self.cfg.dry_run:
            return find_checkpoint(self.cfg, self.console.print)
        launch.join(self.hardware)
        return launch.agreed(lambda: find_checkpoint(self.cfg, self.console.print))

    def _check_resume(self, parts: Parts) -> int:
        """The step to go on at. Raises UserError where the data, the tokenizer or the weights are not the run's."""
        forced = bool(self.cfg.get("resume_force"))
        check_same_run(self.cfg, RunFolder.open(self.resume.parent.parent), parts.data.records())
        parts.task.keeps_options = forced
        return resume_checkpoint(self.resume, parts.task, forced)

    # ---- the folder ----------------------------------------------------------------------------------------

    def _folder(self) -> RunFolder:
        """The run's folder; all ranks get rank 0's."""
        if folder := os.environ.get(launch.RUN_VARIABLE):
            return RunFolder(folder)
        several = self.hardware.world_size > 1 and launch.started_from_outside()
        run = self._make_folder() if not several or launch.rank() == 0 else None
        return RunFolder(launch.from_rank_zero(str(run.path) if run else None)) if several else run

    def _make_folder(self) -> RunFolder:
        if self.resume is not None:
            run = RunFolder(self.resume.parent.parent)
            run.keep_inside()
            return run
        wanted = self.cfg.output_dir
        if wanted is not None and self.cfg.resume == "auto":
            RunFolder(wanted).clear_beginning()
        return RunFolder.create(wanted or default_output_dir(self.cfg), exact=wanted is not None)

    # ---- ways to run ---------------------------------------------------------------------------------------

    def _spawn(self, parts: Parts) -> Result:
        if self.callbacks:
            raise UserError(
                f"trainer.devices={self.hardware.devices}: callbacks can't be handed to ranks in processes of their "
                "own; put them into the config (callbacks=), or start with torchrun"
            )
        run = self._make_folder()
        run.write_origin(self.cfg, self.hardware.name)
        launch.spawn(run.path.resolve(), self.hardware, self.resume)
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
        trainer.fit(parts.task, datamodule=parts.data)
        seconds = parts.task.progress.seconds
        self.console.print(
            f"one step: {seconds:.2f} s (the first is the slowest), loss {float(parts.task.last_loss):.4f}, "
            f"{parts.task.progress.tokens:,} tokens; nothing was written"
        )
        return Result(None, "dry run", {"train/loss": float(parts.task.last_loss)})

    def _fit(self, parts: Parts, run: RunFolder, step: int | None) -> Result:
        cfg, task = self.cfg, parts.task
        try:
            trainer = build_trainer(cfg, parts, run, step, self.callbacks)
        except UserError:
            run.remove_if_empty()
            raise
        if trainer.is_global_zero:
            if launch.RUN_VARIABLE not in os.environ:
                run.write_origin(cfg, self.hardware.name)
            task.facts.tokenizer.save(run / "tokenizer.json")
            run.write_json("data.json", data_record(parts.data))
            values = {} if step is not None else record_of(trainer).values(trainer, task)
            name = parts.data.records()["name"]
            facts = {"parameters": parameters(task), "flops_per_token": task.flops_per_token}
            facts |= {"monitor": task.monitor, "mode": task.mode, "data": name, "seed": cfg.seed}
            run.update_summary(status="running", **values, **facts)
            screens.before(self.console, cfg, parts, run.path)
        self._guarded(trainer, parts, run)
        return self._finish(trainer, parts, run)

    def _guarded(self, trainer: Trainer, parts: Parts, run: RunFolder) -> None:
        """Fit, and leave a true status behind however it ends."""
        try:
            trainer.fit(parts.task, datamodule=parts.data, ckpt_path=self.resume, weights_only=True)
        except Stopped as stop:
            self._record(trainer, parts, run, status="stopped")
            self.console.print(f"{stop}; go on with:\npython -m lit_tfm.train resume={run.path}", soft_wrap=True)
            raise SystemExit(stop.status) from None
        except NonFiniteLoss as error:
            self._record(trainer, parts, run, status="failed", reason=str(error))
            last = run / "checkpoints" / "last.ckpt"
            kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was taken yet"
            raise UserError(f"{error}; {kept}; try a lower optimizer.lr, or trainer.precision=32") from error
        except OSError as error:
            if error.errno not in STORAGE:
                raise
            with contextlib.suppress(OSError):  # where nothing can be written, that can't be written either
                self._record(trainer, parts, run, status="failed", reason=f"{error.strerror}: {error.filename}")
            raise UserError(
                f"{run.path}: can't be written ({error.strerror}); checkpoints written before are whole; "
                f"make room, then type resume={run.path}"
            ) from error
        except BaseException as error:
            self._record(trainer, parts, run, status="failed", reason=f"{type(error).__name__}: {error}")
            raise

    def _record(self, trainer: Trainer, parts: Parts, run: RunFolder, **values) -> None:
        if trainer.is_global_zero:
            run.update_summary(**record_of(trainer).values(trainer, parts.task), **values)

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
        """The test split, with the best checkpoint's weights."""
        kept = any(isinstance(c, Checkpoints) for c in trainer.callbacks)
        best = str(run / "checkpoints" / "best.ckpt") if kept else None
        trainer.test(parts.task, datamodule=parts.data, ckpt_path=best, verbose=False, weights_only=True)
        return dict(parts.task.measured)


def record_of(trainer: Trainer) -> Record:
    return next(callback for callback in trainer.callbacks if isinstance(callback, Record))


def hush() -> None:
    """Lightning's advice of the day is not this run's news."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
