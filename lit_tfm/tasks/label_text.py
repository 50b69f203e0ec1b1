"""Classification by writing: the encoder-decoder answers with the label's text, as T5 does (Raffel et al. 2020).

Each possible answer is a *candidate*, a short text. One label an example: the candidates are the labels' texts. Several
labels: two candidates a label, "<label> no" and "<label> yes", of which only the answer is scored.

The decoder chooses among the tokens that occur in candidates, not the whole vocabulary: nothing else can be an answer,
and a model trained from scratch need not learn that first (SST-2 after 320 steps: 0.67 against 0.51, chance).

Letters: B examples, T tokens of the input, K candidates, R candidates scored for an example, D tokens of a candidate,
W tokens that occur in candidates, L labels, C model dim.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_tfm.data.facts import DataFacts
from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.errors import UserError
from lit_tfm.nn.heads import LMHead
from lit_tfm.nn.products import linear
from lit_tfm.tasks.base import Batch
from lit_tfm.tasks.language import pad, real
from lit_tfm.tasks.readout import Readout

ANSWERS = ("no", "yes")
# Candidates scored in one pass. Not chosen by the batch: under FSDP all ranks have to make the same number of passes.
AT_ONCE = 16


class LabelTextReadout(Readout):
    """Trained by the log-likelihood of the right candidate; predicts by comparing those of all candidates.

    The training loss of an example, -log p(text of its label), is not less than its validation loss, in which the
    probability is shared among the candidates only.
    """

    def __init__(self, model: nn.Module, facts: DataFacts, texts: list[str] | None = None) -> None:
        super().__init__()
        texts = list(facts.labels) if texts is None else [str(text) for text in texts]
        if len(texts) != len(facts.labels):
            raise UserError(
                f"task.label_texts has {len(texts)} texts, the data {len(facts.labels)} labels "
                f"({', '.join(facts.labels)}); give one text for each, in this order"
            )
        self.multi_label = facts.multi_label
        tokens, scored = candidates(facts.tokenizer, texts, facts.multi_label)
        words = np.unique(tokens[scored])  # (W,)
        targets = np.searchsorted(words, tokens).clip(max=len(words) - 1)  # numbers among them; any where not scored
        start = facts.tokenizer.pad_id if facts.tokenizer.pad_id is not None else facts.tokenizer.sep_id
        inputs = np.concatenate([np.full((len(tokens), 1), start), tokens[:, :-1]], axis=1)
        tables = {"words": words, "targets": targets, "inputs": inputs, "scored": scored}
        for name, table in tables.items():  # all but `words` are (K, D)
            self.register_buffer(name, torch.from_numpy(table), persistent=False)
        config = model.config
        self.head = LMHead(
            config.d_model,
            len(words),
            tied=model.embedding if config.tie_embeddings else None,
            softcap=config.softcap,
            zero_init=config.zero_init,
        )

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        memory = model.encode(batch["input_ids"], batch.get("attention_mask"))  # (B, T, C)
        everyone = torch.arange(len(self.targets), device=memory.device).expand(len(memory), -1)  # (B, K)
        parts = everyone.split(AT_ONCE, dim=1)
        likely = -torch.cat([self._losses(self._logits(model, batch, memory, part), part) for part in parts], dim=1)
        if not self.multi_label:
            return likely  # (B, L)
        no, yes = likely.unflatten(1, (-1, 2)).unbind(2)  # (B, L) each
        return yes - no

    def losses(self, model: nn.Module, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
        memory = model.encode(batch["input_ids"], batch.get("attention_mask"))
        right = self.right(batch["labels"])
        logits = self._logits(model, batch, memory, right)
        loss, smoothed = (self._losses(logits, right, s).mean(1) * batch["counted"] for s in (0.0, smoothing))
        return loss, smoothed

    def right(self, labels: Tensor) -> Tensor:
        """(B,) or (B, L) labels -> (B, R) numbers of the candidates that are right."""
        labels = labels.clamp(min=0)  # a filler's loss is multiplied away
        if not self.multi_label:
            return labels[:, None]
        return 2 * torch.arange(labels.shape[1], device=labels.device) + labels

    def _logits(self, model: nn.Module, batch: Batch, memory: Tensor, which: Tensor) -> Tensor:
        """Of candidates `which` (B, R), each given its example's memory (B, T, C): (B * R, D, W)."""
        mask, repeats = batch.get("attention_mask"), which.shape[1]
        if repeats > 1:
            memory = memory.repeat_interleave(repeats, dim=0)  # (B * R, T, C)
            mask = None if mask is None else mask.repeat_interleave(repeats, dim=0)
        hidden = model.decode(self.inputs[which.flatten()], memory, mask)  # (B * R, D, C)
        if not model.config.tie_embeddings:
            return self.head(hidden)
        return self.head.cap(linear(hidden, self.head.weight[self.words]).float())

    def _losses(self, logits: Tensor, which: Tensor, smoothing: float = 0.0) -> Tensor:
        """-log p of candidates `which` (B, R), summed over their scored tokens: (B, R)."""
        targets, scored = (table[which.flatten()] for table in (self.targets, self.scored))  # (B * R, D)
        # Flat: the kernel for more dimensions has no deterministic form on CUDA.
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
        ).view_as(targets)
        return (loss * scored).sum(1).view_as(which)


def candidates(tokenizer: Tokenizer, texts: list[str], multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (K, D) of all candidates, the end token behind each, and which of them are scored (K, D) bool.

    Raises UserError where two candidates are the same tokens.
    """
    named = tokenizer.encode_batch(texts)
    prefixes = [name[:0] for name in named]
    if multi_label:
        answers = tokenizer.encode_batch([f" {answer}" for answer in ANSWERS])
        prefixes = [name for name in named for _ in answers]
        named = [answer for _ in texts for answer in answers]
    rows = [np.concatenate([a, b, [tokenizer.sep_id]]).astype(np.int64) for a, b in zip(prefixes, named, strict=True)]
    owners: dict[tuple, int] = {}
    for number, row in enumerate(rows):
        if (other := owners.setdefault(tuple(row.tolist()), number)) != number:
            per = len(ANSWERS) if multi_label else 1
            a, b = texts[other // per], texts[number // per]
            raise UserError(
                f"labels {a!r} and {b!r} are the same tokens to this tokenizer, so their texts can't be told apart; "
                "give others, task.label_texts=[...], or choose tokenizer=bpe"
            )
    tokens = pad(rows, tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.sep_id)
    present = real(rows, tokens.shape[1])
    asked = np.arange(tokens.shape[1]) >= np.array([len(prefix) for prefix in prefixes])[:, None]
    return tokens, present & asked
