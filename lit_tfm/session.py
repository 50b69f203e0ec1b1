"""One run from its config to its result: choose the machine, build, make the folder, fit, test, tell.

Nothing is written before everything has been built, so that a refused run leaves nothing behind.
"""

import contextlib
import errno
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lit_tfm import hardware as machines
from lit_tfm import launch, screens
from lit_tfm.build import Parts, build, build_trainer, data_record, resume_checkpoint
from lit_tfm.callbacks.checkpoint_files import check, newest
from lit_tfm.callbacks.checkpoints import Checkpoints
from lit_tfm.callbacks.preemption import Stopped
from lit_tfm.callbacks.record import Record
from lit_tfm.callbacks.tensorboard import HParams, flatten
from lit_tfm.callbacks.trial import TrialReport
from lit_tfm.config import default_output_dir
from lit_tfm.errors import UserError
from lit_tfm.models.cost import parameters
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
        self.resume = launch.handed_on() or find_checkpoint(cfg, self.console.print)

    def run(self) -> Result:
        hush()
        if self.cfg.dry_run:
            return self._dry_run()
        if self.resume is not None:
            check_same_run(self.cfg, RunFolder.open(self.resume.parent.parent))
        parts = build(self.cfg, self.hardware)
        step = resume_checkpoint(self.resume, parts.task) if self.resume else None
        if step is not None and parts.task.progress.fraction(step) >= 1.0 and self._ended():
            return self._already_finished(parts, step)
        if self.hardware.world_size > 1 and not launch.started_from_outside():
            return self._spawn(parts)
        if self.hardware.world_size > 1:
            launch.join(self.hardware)
        return self._fit(parts, self._folder(), step)

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
            return RunFolder(self.resume.parent.parent)
        wanted = self.cfg.output_dir
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


def check_same_run(cfg: DictConfig, run: RunFolder) -> None:
    """Raises UserError where the config asks for another model, task or tokenizer than the run to go on with has."""
    old = run.config()
    differing = []
    for group in ("model", "task", "tokenizer"):
        before, now = flatten(OmegaConf.to_container(old[group])), flatten(OmegaConf.to_container(cfg[group]))
        before["_target_"], now["_target_"] = old[group]["_target_"], cfg[group]["_target_"]
        differing += [
            f"{group}.{key}: {before.get(key)} -> {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key != "path"
        ]
    if differing:
        raise UserError(
            f"resume={run.path}: it was another run ({'; '.join(differing[:5])}); type resume={run.path} alone "
            "to go on with its own config, or init_from= to start from its weights"
        )


def find_checkpoint(cfg: DictConfig, say: Callable[[str], None]) -> Path | None:
    """The whole checkpoint that `resume` names; with `auto`, None where there is nothing to go on from.

    Of a folder it is the newest that is whole; `say` is told of each newer one that is not. A file that is named must
    be whole itself.
    """
    if cfg.resume is None:
        return None
    if cfg.resume == "auto":
        folder = unfinished(cfg)
        if folder is None:
            return None
    else:
        folder = Path(cfg.resume)
        if folder.is_file():
            if wrong := check(folder):
                raise UserError(f"resume={folder}: the checkpoint is broken ({wrong}); type resume={folder.parents[1]}")
            return folder
    found, broken = newest(folder / "checkpoints", cfg.resume)
    for notice in broken:
        say(f"{notice}; going on from {found.name}")
    return found


def unfinished(cfg: DictConfig) -> Path | None:
    """output_dir, where it is named, else the newest run of this name that has not ended, if it has a checkpoint."""
    if cfg.output_dir:
        return Path(cfg.output_dir) if newest_time(Path(cfg.output_dir)) else None
    folders = [folder for folder in (Path("outputs") / str(cfg.name)).glob("*") if newest_time(folder)]
    return max((f for f in folders if RunFolder(f).status() not in ENDED), key=newest_time, default=None)


def newest_time(run: Path) -> float:
    """When a checkpoint was last taken; 0 where there is none."""
    return max((path.stat().st_mtime for path in (run / "checkpoints").glob("[!.]*.ckpt")), default=0.0)


def hush() -> None:
    """Lightning's advice of the day is not this run's news."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
