"""Checkpoints: the newest, the best, and one every n steps.

A checkpoint is only taken between two optimizer steps, and all that Lightning counts is brought into one canonical
form that follows from the step alone (`between_steps`). With data that is a function of the step, this is what makes
a resumed run the same as an uninterrupted one.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, Trainer
from torch import nn
from torch.distributed.tensor import DTensor

from lit_tfm.callbacks.checkpoint_files import LAST, keep_as
from lit_tfm.callbacks.names import settle
from lit_tfm.callbacks.record import Record
from lit_tfm.callbacks.replacing import put
from lit_tfm.callbacks.sharding import Sharding
from lit_tfm.tasks.nonfinite import NonFiniteLoss


class Checkpoints(Callback):
    """last.ckpt at every validation and at the end; the `best` best by the task's monitor; one every `every` steps.

    `best` files are named by rank: best.ckpt, best-2.ckpt ... . Beside best and last stand the plain weights as
    safetensors. `sharded`: under FSDP every rank saves its own shards, and a checkpoint is a folder; elsewhere there
    are no shards, and it is a file.
    """

    def __init__(
        self, folder: str, monitor: str, mode: str, best: int = 1, every: int | None = None, sharded: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.monitor, self.sign = monitor, (1 if mode == "min" else -1)
        self.best, self.every, self.sharded = best, every, sharded
        self.ranking: list[dict[str, float]] = []  # best first: {"value", "step"}

    def setup(self, trainer: Trainer, pl_module, stage: str) -> None:
        if isinstance(trainer.strategy, Sharding):
            trainer.strategy.in_shards = self.sharded

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        if not trainer.ckpt_path:
            return
        best = [(self._name(place), entry["step"]) for place, entry in enumerate(self.ranking)]
        asked = f"step-{trainer.global_step}.ckpt" if self._asked(trainer.global_step) else None
        kept = settle(self.folder, best, Path(trainer.ckpt_path), asked) if trainer.is_global_zero else None
        self._keep(trainer.strategy.broadcast(kept), trainer)

    def _keep(self, steps: list[int], trainer: Trainer) -> None:
        """Of the ranking, only what has a file: no figures without the weights they were measured with."""
        lost = {int(entry["step"]) for entry in self.ranking} - set(steps)
        self.ranking = [entry for entry in self.ranking if entry["step"] in steps]
        best = [{self.monitor: entry["value"], "step": entry["step"]} for entry in self.ranking]
        for callback in trainer.callbacks:
            if isinstance(callback, Record) and callback.best.get("step") in lost:
                callback.best = best[0] if best else {}

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        between = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        validates = trainer.val_check_batch == 1 or trainer.should_stop  # as Pace has just said
        if between and self._asked(trainer.global_step) and not validates:
            self._save(trainer, f"step-{trainer.global_step}.ckpt")

    def _asked(self, step: int) -> bool:
        return bool(self.every) and step > 0 and step % self.every == 0

    def on_validation_end(self, trainer: Trainer, pl_module) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = pl_module.measured.get(self.monitor)
        place = self._place(value, trainer.global_step) if value is not None else None
        self._save(trainer, LAST, weights=True)
        if place is not None:
            for rank in range(len(self.ranking) - 1, place, -1):
                self._shift(trainer, rank)
            if trainer.is_global_zero:
                keep_as(self.folder / LAST, self._name(place))
        if self._asked(trainer.global_step) and trainer.is_global_zero:
            # Only now: what goes on from it takes the validations up to its step for done.
            keep_as(self.folder / LAST, f"step-{trainer.global_step}.ckpt", weights=False)

    def save_last(self, trainer: Trainer) -> None:
        """Where the run stands now, between two steps. Collective."""
        self._save(trainer, LAST, weights=True)

    def _place(self, value: float, step: int) -> int | None:
        """Where among the best this validation comes in; None where it does not."""
        better = [self.sign * entry["value"] <= self.sign * value for entry in self.ranking]
        place = sum(better)
        if value != value or place >= self.best:
            return None
        self.ranking.insert(place, {"value": value, "step": step})
        del self.ranking[self.best :]
        return place

    def _name(self, rank: int) -> str:
        return "best.ckpt" if rank == 0 else f"best-{rank + 1}.ckpt"

    def _shift(self, trainer: Trainer, rank: int) -> None:
        if not trainer.is_global_zero:
            return
        for suffix in (".ckpt", ".safetensors"):
            older = (self.folder / self._name(rank - 1)).with_suffix(suffix)
            if older.exists():
                put(older, (self.folder / self._name(rank)).with_suffix(suffix))

    def _save(self, trainer: Trainer, name: str, weights: bool = False) -> None:
        """Collective: FSDP gathers. Raises NonFiniteLoss rather than replace good weights by bad."""
        with trainer.lightning_module.progress.paused():
            if not finite(trainer.lightning_module):
                raise NonFiniteLoss(f"weights are no longer finite at step {trainer.global_step}")
            for logger in trainer.loggers if trainer.is_global_zero else []:
                logger.save()  # killed later, the curves up to here are on the disk as the checkpoint is
            trainer.strategy.checkpoint_io.weights = weights
            trainer.save_checkpoint(self.folder / name)

    def on_save_checkpoint(self, trainer: Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"] = between_steps(
            checkpoint["loops"]["fit_loop"], checkpoint["global_step"], trainer.accumulate_grad_batches
        )

    def on_load_checkpoint(self, trainer: Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        # By this run's own accumulation, which may be another one: batches are counted, and steps are what is meant.
        checkpoint["loops"]["fit_loop"] = between_steps(
            checkpoint["loops"]["fit_loop"], checkpoint["global_step"], trainer.accumulate_grad_batches
        )

    def state_dict(self) -> dict[str, Any]:
        return {"ranking": list(self.ranking)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ranking = list(state["ranking"])


def finite(module: nn.Module) -> bool:
    """Whether every weight, on every rank, is a finite number."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
    total = torch.stack(torch._foreach_norm([p.detach() for p in local])).sum()
    good = torch.isfinite(total).float()
    if dist.is_initialized():
        dist.all_reduce(good, dist.ReduceOp.MIN)
    return bool(good)


def between_steps(loop: dict[str, Any], step: int, accumulate: int) -> dict[str, Any]:
    """Lightning's counters as they are after `step` optimizer steps and whatever validation was due.

    Lightning saves at different moments with different counters (before or after `completed` is raised, inside a
    validation), and repairs them on restart by guessing which moment it was. One form needs no guessing.
    """
    batches = step * accumulate
    done = {"ready": batches, "completed": batches, "started": batches, "processed": batches}
    steps = {"ready": step, "completed": step}
    loop = dict(loop)
    loop["epoch_loop.state_dict"] = {**loop["epoch_loop.state_dict"], "_batches_that_stepped": step}
    loop["epoch_loop.batch_progress"] = {"total": dict(done), "current": dict(done), "is_last_batch": False}
    none = dict.fromkeys(done, 0)  # validations are whole or not at all: none is ever gone on with
    loop["epoch_loop.val_loop.batch_progress"] = {"total": dict(none), "current": dict(none), "is_last_batch": False}
    loop["epoch_loop.automatic_optimization.optim_progress"] = {
        "optimizer": {
            "step": {"total": dict(steps), "current": dict(steps)},
            "zero_grad": {"total": {**steps, "started": step}, "current": {**steps, "started": step}},
        }
    }
    return loop
