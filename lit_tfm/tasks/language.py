"""What language-modelling tasks share: batches of token blocks, the loss over a vocabulary, and honest perplexities.

Letters: B blocks, T tokens, N targets, C model dim, V vocabulary.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_tfm.data.facts import SplitStats
from lit_tfm.errors import UserError
from lit_tfm.nn.heads import LMHead
from lit_tfm.nn.vocabulary_loss import IGNORED
from lit_tfm.tasks.base import Batch, StepOutput, Task


def pad(rows: list[np.ndarray], value: int, length: int | None = None) -> np.ndarray:
    """Rows of unequal length -> (B, T) int64, filled at the right with `value`."""
    longest = max(len(row) for row in rows) if length is None else length
    if all(len(row) == longest for row in rows):
        return np.stack(rows).astype(np.int64)
    table = np.full((len(rows), longest), value, dtype=np.int64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def real(rows: list[np.ndarray], length: int) -> np.ndarray:
    """(B, T) bool: True where a row has a token of its own."""
    lengths = np.array([len(row) for row in rows])
    return np.arange(length) < lengths[:, None]


def document_ids(examples: list[dict], length: int) -> np.ndarray | None:
    """(B, T) ids of the document each token belongs to, or None where every block holds a single one.

    None is worth having: attention without a mask is the fast one.
    """
    rows = [example["document_ids"][:length] for example in examples if example["document_ids"] is not None]
    if not rows or all(row[-1] == row[0] for row in rows):
        return None
    return pad(rows, -1, length)  # padding sees padding only: a row of attention is never empty


def language_head(model: nn.Module) -> LMHead:
    """The head over the vocabulary that the model's config asks for; tied to its embedding if so."""
    config = model.config
    return LMHead(
        config.d_model,
        config.vocab_size,
        tied=model.embedding if config.tie_embeddings else None,
        softcap=config.softcap,
        zero_init=config.zero_init,
        compiled=bool(config.compile),
    )


class LanguageTask(Task):
    """Loss over a vocabulary, and the metrics that compare across tokenizers."""

    headline = ("loss", "perplexity", "word_perplexity", "bits_per_byte")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.facts.labels is not None:
            raise UserError(
                f"{type(self).__name__} learns from running text, and this data set has labels; type data=text "
                "data.path=... or data=pydoc, or task=classification"
            )

    def training_loss(self, hidden: Tensor, labels: Tensor) -> StepOutput:
        """hidden (N, C), labels (N,) with `IGNORED` where nothing is to be predicted. Never holds all logits."""
        loss_sum, objective = self.head.losses(hidden, labels, self.label_smoothing)
        count = (labels != IGNORED).sum()
        return StepOutput(loss_sum, count, {}, objective) if self.label_smoothing else StepOutput(objective, count)

    def vocabulary_loss(self, logits: Tensor, labels: Tensor) -> StepOutput:
        """Of an evaluation: logits (N, V) float32, labels (N,) as above. What scores single targets listens here."""
        count = (labels != IGNORED).sum()
        loss_sum = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return StepOutput(loss_sum, count, {"accuracy": ((logits.argmax(-1) == labels).sum(), count)})

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {key: batch[key] for key in ("input_ids", "attention_mask", "document_ids") if key in batch}

    def report(self, means: dict[str, float], stage: str) -> dict[str, float]:
        split = self.facts.splits["validation" if stage == "val" else stage]
        return {**means, **perplexities(means["loss"], split)}


def perplexities(loss: float, split: SplitStats) -> dict[str, float]:
    """Perplexity a token, perplexity a word, bits a byte, from the mean loss in nats a token.

    The last two weigh the loss by the split's own tokens a word (whitespace words, and one for each line end: the
    WikiText convention) and tokens a byte, so that they compare across tokenizers. For a masked LM they are
    pseudo-perplexities (Salazar et al. 2020, arXiv 1910.14659): each token is predicted from both sides.
    """
    values = {"perplexity": _exp(loss)}
    if split.words:
        values["word_perplexity"] = _exp(loss * split.tokens / split.words)
    if split.bytes:
        values["bits_per_byte"] = loss / math.log(2) * split.tokens / split.bytes
    return values


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def tensors(batch: dict[str, np.ndarray | int | None]) -> Batch:
    """numpy -> torch without a copy; absent entries (None) are left out."""
    return {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in batch.items()
        if value is not None
    }
