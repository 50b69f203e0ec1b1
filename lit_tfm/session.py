"""One run from its config to its result: choose the machine, build, make the folder, fit, test, tell.

Nothing is written before everything has been built, so that a refused run leaves nothing behind.
"""

import contextlib
import errno
import logging
import os
import warnings
from pathlib import Path

from lightning import Trainer
from omegaconf import DictConfig, open_dict
from rich.console import Console

from lit_tfm import hardware as machines
from lit_tfm import launch, screens
from lit_tfm.build import Parts, build, build_trainer, data_record, resume_checkpoint
from lit_tfm.callbacks.checkpoints import Checkpoints
from lit_tfm.callbacks.record import Record
from lit_tfm.callbacks.tensorboard import HParams
from lit_tfm.config import default_output_dir
from lit_tfm.errors import UserError
from lit_tfm.models.cost import parameters
from lit_tfm.runs import Result, RunFolder
from lit_tfm.tasks.base import NonFiniteLoss

# What a disk, not a defect, answers.
STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO}


class Session:
    """The state that the steps of one run share."""

    def __init__(self, cfg: DictConfig, quiet: bool = False) -> None:
        self.cfg = cfg
        self.console = Console(quiet=quiet or launch.rank() > 0)
        self.hardware = machines.choose(cfg.trainer)
        self.resume = find_checkpoint(cfg)

    def run(self) -> Result:
        cfg, hardware = self.cfg, self.hardware
        hush()
        if cfg.dry_run:
            return self._dry_run()
        inside = hardware.world_size == 1 or launch.started_from_outside()
        parts = build(cfg, hardware)
        if not inside:
            run = self._folder()
            return self._spawn(run, parts)
        if hardware.world_size > 1:
            launch.join(hardware)
        run = self._folder()
        return self._fit(parts, run)

    # ---- the folder ----------------------------------------------------------------------------------------

    def _folder(self) -> RunFolder:
        """The run's folder, with its config and origin in it; all ranks get rank 0's."""
        if folder := os.environ.get(launch.RUN_VARIABLE):
            return RunFolder(folder)
        several = self.hardware.world_size > 1 and launch.started_from_outside()
        run = self._make_folder() if not several or launch.rank() == 0 else None
        return RunFolder(launch.from_rank_zero(str(run.path) if run else None)) if several else run

    def _make_folder(self) -> RunFolder:
        if self.resume is not None:
            run = RunFolder(self.resume.parent.parent)
        else:
            wanted = self.cfg.output_dir
            run = RunFolder.create(wanted or default_output_dir(self.cfg), exact=wanted is not None)
        with open_dict(self.cfg):
            self.cfg.output_dir = str(run.path)
            self.cfg.resume = str(self.resume) if self.resume else None
        run.write_origin(self.cfg, self.hardware.name)
        return run

    # ---- ways to run ---------------------------------------------------------------------------------------

    def _spawn(self, run: RunFolder, parts: Parts) -> Result:
        status = launch.spawn(run.path.resolve(), self.hardware)
        if status != 0:
            raise SystemExit(status if status > 0 else 128 - status)
        summary = run.read_json("summary.json")
        return Result(run.path, summary["status"], summary["metrics"], summary["best"], summary)

    def _dry_run(self) -> Result:
        cfg = self.cfg
        parts = build(cfg, self.hardware)
        screens.before(self.console, cfg, parts, folder=None)
        parts.task.progress.max_steps, parts.task.progress.budget = 1, None
        trainer = build_trainer(cfg, parts, run=None)
        trainer.fit(parts.task, datamodule=parts.data)
        seconds = parts.task.progress.seconds
        self.console.print(
            f"one step: {seconds:.2f} s (the first is the slowest), loss {float(parts.task.last_loss):.4f}, "
            f"{parts.task.progress.tokens:,} tokens; nothing was written"
        )
        return Result(None, "dry run", {"train/loss": float(parts.task.last_loss)})

    def _fit(self, parts: Parts, run: RunFolder) -> Result:
        cfg, task = self.cfg, parts.task
        step = resume_checkpoint(self.resume, task) if self.resume else None
        trainer = build_trainer(cfg, parts, run, step)
        if trainer.is_global_zero:
            task.facts.tokenizer.save(run / "tokenizer.json")
            run.write_json("data.json", data_record(parts.data))
            run.update_summary(
                status="running", parameters=parameters(task), data=parts.data.records()["name"], seed=cfg.seed
            )
            screens.before(self.console, cfg, parts, run.path)
        status = self._guarded(trainer, parts, run)
        return self._finish(trainer, parts, run, status)

    def _guarded(self, trainer: Trainer, parts: Parts, run: RunFolder) -> str:
        """Fit, and leave a true status behind however it ends."""
        try:
            trainer.fit(parts.task, datamodule=parts.data, ckpt_path=self.resume, weights_only=True)
        except NonFiniteLoss as error:
            self._fail(trainer, run, str(error))
            last = run / "checkpoints" / "last.ckpt"
            kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was taken yet"
            raise UserError(f"{error}; {kept}; try a lower optimizer.lr, or trainer.precision=32") from error
        except OSError as error:
            if error.errno not in STORAGE:
                raise
            self._try_to_fail(trainer, run, f"{error.strerror}: {error.filename or run.path}")
            raise UserError(
                f"{run.path}: can't be written ({error.strerror}); checkpoints written before are whole; "
                f"make room, then type resume={run.path}"
            ) from error
        except (KeyboardInterrupt, SystemExit):
            if trainer.is_global_zero:
                run.update_summary(status="stopped")
            raise
        except BaseException as error:
            self._fail(trainer, run, f"{type(error).__name__}: {error}")
            raise
        return "finished"

    def _try_to_fail(self, trainer: Trainer, run: RunFolder, reason: str) -> None:
        with contextlib.suppress(OSError):  # where nothing can be written, that can't be written either
            self._fail(trainer, run, reason)

    def _fail(self, trainer: Trainer, run: RunFolder, reason: str) -> None:
        if trainer.is_global_zero:
            run.update_summary(status="failed", reason=reason)

    def _finish(self, trainer: Trainer, parts: Parts, run: RunFolder, status: str) -> Result:
        record = next(c for c in trainer.callbacks if isinstance(c, Record))
        values = record.values(trainer, parts.task)
        metrics = dict(values["metrics"])
        if self.cfg.test:
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


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint that `resume` names; with `auto`, None where there is nothing to go on from."""
    if cfg.resume is None:
        return None
    if cfg.resume == "auto":
        folders = [Path(cfg.output_dir)] if cfg.output_dir else sorted((Path("outputs") / str(cfg.name)).glob("*"))
        found = [folder / "checkpoints" / "last.ckpt" for folder in folders]
        found = [path for path in found if path.exists()]
        return max(found, key=lambda path: path.stat().st_mtime) if found else None
    path = Path(cfg.resume)
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"resume={cfg.resume}: there is no checkpoint {path}; name a run folder or a .ckpt file, or resume=auto"
        )
    return path


def hush() -> None:
    """Lightning's advice of the day is not this run's news."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
