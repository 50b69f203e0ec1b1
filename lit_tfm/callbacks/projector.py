"""The token embeddings in TensorBoard's projector: which words a model has put beside each other."""

import os
from pathlib import Path

import numpy as np
from lightning import Callback, Trainer

from lit_tfm.callbacks.attention import visible
from lit_tfm.callbacks.checkpoint_files import partial
from lit_tfm.callbacks.gathered import looking, whole
from lit_tfm.callbacks.tensorboard import boards, of_a_trial
from lit_tfm.tasks.base import Task

FOLDER = "projector"
# SummaryWriter.add_embedding makes a new folder of text files at every call; here one set is written over.
CONFIG = """embeddings {
  tensor_name: "tokens"
  tensor_path: "projector/vectors.tsv"
  metadata_path: "projector/tokens.tsv"
}
"""
COUNTED = 5_000_000  # tokens of the training data that frequency is judged by


class Projector(Callback):
    """Embeddings of the `count` most frequent tokens, at the first validation, every `every`th, and the run's end.

    Written into the run folder's `projector/`, about 8 bytes a number, each time over the last. Not for the trials of a
    sweep, of which there may be thousands; nor without TensorBoard.
    """

    def __init__(self, count: int = 1000, every: int = 5) -> None:
        self.count, self.every = count, every
        self._validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: Task) -> None:
        # Everything that decides is the same on all ranks.
        if trainer.state.fn != "fit" or trainer.sanity_checking or not boards(trainer):
            return
        if self._validations % self.every == 0 or trainer.should_stop:
            with looking(trainer, pl_module):
                table = whole(pl_module.model.embedding.weight)  # (V, C)
                if trainer.is_global_zero:
                    self._write(trainer, pl_module, table.float().cpu().numpy())
        self._validations += 1

    def _write(self, trainer: Trainer, task: Task, table: np.ndarray) -> None:
        counts = frequencies(trainer, len(table))
        ids = most_frequent(counts, self.count)
        names = [visible(task.facts.tokenizer.token(i)) for i in ids]
        for folder in (Path(logger.log_dir) for logger in boards(trainer)):
            if not of_a_trial(folder):
                write(folder, table[ids], names, counts[ids])


def frequencies(trainer: Trainer, vocabulary: int) -> np.ndarray:
    """(V,) how often each token stands in the training data; all 0 where that is not known."""
    store = getattr(trainer.datamodule, "stores", {}).get("train")
    tokens = np.zeros(0, dtype=np.int64) if store is None else store.tokens[:COUNTED].astype(np.int64)
    return np.bincount(tokens, minlength=vocabulary)[:vocabulary]


def most_frequent(counts: np.ndarray, limit: int) -> np.ndarray:
    """Ids of at most `limit` tokens that occur, the most frequent first; the first ids where no count is known."""
    if not counts.any():
        return np.arange(min(limit, len(counts)))
    return np.argsort(-counts, kind="stable")[: min(limit, np.count_nonzero(counts))]


def write(folder: Path, vectors: np.ndarray, names: list[str], counts: np.ndarray) -> None:
    """vectors (N, C) and their names. The config comes last: without it TensorBoard does not look at the others."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    rows = ["\t".join(f"{value:.4g}" for value in row) for row in vectors.tolist()]
    labels = ["token\tcount", *(f"{name}\t{count}" for name, count in zip(names, counts, strict=True))]
    _replace(folder / FOLDER / "vectors.tsv", "\n".join(rows) + "\n")
    _replace(folder / FOLDER / "tokens.tsv", "\n".join(labels) + "\n")
    _replace(folder / "projector_config.pbtxt", CONFIG)


def _replace(path: Path, text: str) -> None:
    """TensorBoard may be reading."""
    with partial(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
