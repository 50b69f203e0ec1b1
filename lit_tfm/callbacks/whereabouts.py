"""Where a run is: phase, step, and the batch it works on. Told when it hangs or runs out of memory.

A mark is three assignments; nothing is formatted before somebody asks.
"""

from typing import Any

from lightning import Callback, Trainer
from torch import Tensor

LOADING, FORWARD, BACKWARD, UPDATE = "waiting for its batch", "forward pass", "backward pass", "exchange and update"
VALIDATION, TEST, SAVING, CALLBACKS = "validation", "test", "checkpoint", "callbacks"
START = "setting up"


class Whereabouts(Callback):
    """`count` rises with every mark, and all ranks make the same marks in the same order: a lower one is behind."""

    def __init__(self) -> None:
        self.phase, self.step, self.count = START, 0, 0
        self.rows = self.width = 0  # of the batch at hand

    def mark(self, phase: str) -> None:
        self.phase = phase
        self.count += 1

    def tell(self) -> str:
        return f"step {self.step}, {self.phase}"

    def _take(self, batch: Any) -> None:
        tokens = batch.get("input_ids") if isinstance(batch, dict) else None
        self.rows, self.width = tokens.shape[:2] if isinstance(tokens, Tensor) and tokens.dim() > 1 else (0, 0)

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        self.step = trainer.global_step + 1
        self.mark(LOADING)

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch: Any, batch_idx: int) -> None:
        self.step = trainer.global_step + 1
        self._take(batch)
        self.mark(FORWARD)

    def on_before_backward(self, trainer: Trainer, pl_module, loss: Tensor) -> None:
        self.mark(BACKWARD)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module, optimizer) -> None:
        self.mark(UPDATE)

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch: Any, batch_idx: int) -> None:
        self.step = trainer.global_step + 1
        self.mark(LOADING)

    def on_validation_start(self, trainer: Trainer, pl_module) -> None:
        self.mark(VALIDATION)

    def on_validation_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self._take(batch)
        self.mark(VALIDATION)

    def on_validation_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx, loader=0) -> None:
        self.mark(VALIDATION)

    def on_validation_end(self, trainer: Trainer, pl_module) -> None:
        self.mark(CALLBACKS)

    def on_test_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self._take(batch)
        self.mark(TEST)

    def on_test_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.mark(TEST)

    def on_save_checkpoint(self, trainer: Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        self.mark(SAVING)
