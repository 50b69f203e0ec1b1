"""From a model's hidden states to one score a label: what differs between architectures in classification.

A readout gives `scores(model, batch)` (B, L): logits of a softmax over labels, or of one sigmoid a label. `losses` are
what it is trained by, for one example each.

Letters: B examples, T tokens, L labels, C model dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_tfm.data.facts import DataFacts
from lit_tfm.errors import UserError, nearest
from lit_tfm.nn import pooling
from lit_tfm.nn.heads import ClassificationHead
from lit_tfm.tasks.base import Batch
from lit_tfm.tasks.language import IGNORED


def label_losses(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """scores (B, L), labels (B,) or (B, L) -> (B,) loss of each example, 0 for a filler.

    Several labels an example: the mean over labels of the binary cross entropies.
    """
    if labels.ndim == 1:
        return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing)
    counted = labels[:, 0] != IGNORED
    targets = labels.clamp(min=0).to(scores.dtype) * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(scores, targets, reduction="none").mean(1) * counted


class Readout(nn.Module):
    """Base: trained by the cross entropy of its scores."""

    lead = False  # whether texts open with the cls token

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError

    def losses(self, model: nn.Module, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
        """(B,) loss of each example, and (B,) what is differentiated: the same with smoothed labels."""
        scores = self.scores(model, batch)
        loss = label_losses(scores, batch["labels"])
        return loss, label_losses(scores, batch["labels"], smoothing) if smoothing else loss


class AttentionPooling(nn.Module):
    """A mean weighted by one learned query (Yang et al. 2016); starts as the plain mean."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, 1, bias=False)
        nn.init.zeros_(self.query.weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        weight = self.query(x).squeeze(-1).float()  # (B, T)
        if mask is not None:
            weight = weight.masked_fill(~mask, -torch.inf)
        return torch.einsum("bt,btc->bc", weight.softmax(1).to(x.dtype), x)


class PooledReadout(Readout):
    """Encoder: one vector for the text (mean, max, first, attention), then a linear layer."""

    lead = True
    POOLINGS = ("mean", "max", "first", "attention")

    def __init__(self, model: nn.Module, facts: DataFacts, pool: str, dropout: float) -> None:
        super().__init__()
        if pool not in self.POOLINGS:
            allowed = ", ".join(self.POOLINGS)
            raise UserError(f"task.pooling={pool}; it can be {allowed}{nearest(str(pool), self.POOLINGS)}")
        d_model = model.config.d_model
        self.pool = AttentionPooling(d_model) if pool == "attention" else pooling.POOLINGS[pool]
        self.head = ClassificationHead(d_model, len(facts.labels), dropout)

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        names = ["input_ids", "attention_mask", *(["segment_ids"] if model.config.n_segments else [])]
        hidden = model.hidden(**{name: batch[name] for name in names if name in batch})  # (B, T, C)
        return self.head(self.pool(hidden, batch.get("attention_mask")))


class LastTokenReadout(Readout):
    """Decoder: the hidden state of the last token, the only one that has seen the whole text (Radford et al. 2018)."""

    def __init__(self, model: nn.Module, facts: DataFacts, dropout: float) -> None:
        super().__init__()
        self.head = ClassificationHead(model.config.d_model, len(facts.labels), dropout)

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        # No mask for the model: padding stands at the right, where no real token looks.
        hidden = model.hidden(batch["input_ids"])  # (B, T, C)
        return self.head(pooling.last(hidden, batch.get("attention_mask")))
