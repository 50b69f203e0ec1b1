"""Text samples during training: what the model makes of a few validation texts, as a table in TensorBoard.

Filled masks, continuations, filled spans, predicted labels: whatever the task's `samples` gives. Nothing here draws
from the global random generator, and the model is in evaluation mode as it is during validation: a run with samples is
bit for bit the run without.
"""

import html
import re
from functools import partial

from lightning import Callback, Trainer
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from lit_tfm.callbacks.gathered import looking
from lit_tfm.callbacks.tensorboard import boards
from lit_tfm.generation.decode import decode
from lit_tfm.generation.sampling import Sampling
from lit_tfm.tasks.base import Task


class Samples(Callback):
    """After every validation, `count` pairs of asked and answered text from the batch in the middle.

    Free text is drawn with `temperature`, `top_k`, `top_p` (0, 0, 1: the likeliest token each).
    """

    def __init__(self, count: int = 4, temperature: float = 0.8, top_k: int = 40, top_p: float = 1.0) -> None:
        self.count = count
        self.sampling = Sampling(temperature, top_k, top_p)
        self._batch: dict | None = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Task, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Not the first one: batches may be sorted by length, and the shortest texts tell little.
        if batch_idx == trainer.num_val_batches[dataloader_idx] // 2 and self._wanted(trainer, pl_module):
            self._batch = batch

    def on_validation_end(self, trainer: Trainer, pl_module: Task) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        with looking(trainer, pl_module):
            pairs = sample(pl_module, batch, self.sampling, self.count)
        if trainer.is_global_zero:
            for logger in boards(trainer):
                logger.experiment.add_text("samples", markdown(pairs), trainer.global_step)

    @staticmethod
    def _wanted(trainer: Trainer, task: Task) -> bool:
        # Loggers are the same on all ranks, so this is decided alike on all of them.
        return (
            trainer.state.fn == "fit" and not trainer.sanity_checking and hasattr(task, "samples") and boards(trainer)
        )


def sample(task: Task, batch: dict, sampling: Sampling, count: int) -> list[tuple[str, str]]:
    """(asked, answered) texts. Under FSDP every rank has to call it."""
    sharded = isinstance(task, FSDPModule)
    if sharded and "samples" not in vars(task):
        # Gathers the root's parameters around the call. It wraps the method it finds, so once only.
        register_fsdp_forward_method(task, "samples")
    tokenizer = task.facts.tokenizer
    stop = tokenizer.sep_id
    padding = tokenizer.pad_id if tokenizer.pad_id is not None else stop
    return task.samples(
        batch, partial(decode, sampling=sampling, stop_id=stop, pad_id=padding, lockstep=sharded), limit=count
    )


def markdown(pairs: list[tuple[str, str]]) -> str:
    """A table whose cells show their text as it is."""
    rows = [f"| {escape(asked)} | {escape(answered)} |" for asked, answered in pairs]
    return "\n".join(["| asked | answered |", "| --- | --- |", *rows])


def escape(text: str) -> str:
    """Text -> markdown that shows just that text, on one line: `<mask>` is no tag, `|` no border, `*` no emphasis."""
    shown = html.escape(text, quote=False).replace("\n", "↵ ").replace("\r", "").replace("\t", " ")
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", lambda found: f"&#{ord(found[0])};", shown)
