"""Pseudo-log-likelihood of a masked model: every token hidden once, alone (Salazar et al. 2020, arXiv 1910.14659).

The masks of training hide many tokens at a time, so a token is predicted with others missing beside it; here nothing
else is missing. A block of T tokens costs T passes.

Letters: N blocks, K hidden tokens of one, R of them at once, T tokens, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from lit_tfm.data.sampling import Key
from lit_tfm.evaluation.scoring import Tick, Units, check_finite, token_losses
from lit_tfm.evaluation.splits import OpenSplit
from lit_tfm.evaluation.subject import Subject
from lit_tfm.tasks.language import document_ids

TOKENS_AT_ONCE = 4096


@torch.inference_mode()
def score(subject: Subject, split: OpenSplit, tick: Tick) -> Units:
    """Sums over the tokens of each block; separators and other marks are not hidden."""
    data, collator = split.data, split.data.collator
    dataset, plan = data.dataset(split.inner), data.plan(split.inner)
    places = np.sort(np.concatenate([plan.batch(0, step) for step in range(plan.steps(0))]))
    rows = []
    for place in places.tolist():
        example = dataset[Key(0, place)]
        tokens = torch.from_numpy(example["tokens"])
        hidden = torch.from_numpy(np.flatnonzero(~collator.special[example["tokens"]]))  # (K,)
        documents = document_ids([example], len(tokens))
        documents = None if documents is None else torch.from_numpy(documents).to(subject.device)
        losses, hits = _block(subject, tokens.to(subject.device), hidden.to(subject.device), documents)
        rows.append((losses, hits, len(hidden)))
        tick(1)
    losses, hits, counts = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return Units("block", {"loss": (losses, counts), "accuracy": (hits, counts)}, places)


def _block(subject: Subject, tokens: Tensor, hidden: Tensor, documents: Tensor | None) -> tuple[float, int]:
    """Loss and hits over a block's tokens (T,), hidden at `hidden` (K,) one after the other."""
    task, loss_sum, hit_sum = subject.task, 0.0, 0
    for places in hidden.split(max(1, TOKENS_AT_ONCE // len(tokens))):  # (R,)
        number = torch.arange(len(places), device=places.device)
        inputs = tokens.repeat(len(places), 1)  # (R, T)
        inputs[number, places] = task.facts.tokenizer.mask_id
        together = None if documents is None else documents.expand(len(places), -1)
        with subject.autocast():
            states = task.model.hidden(inputs, document_ids=together)  # (R, T, C)
            logits = task.head(states[number, places])  # (R, V)
        losses, hits = token_losses(logits, tokens[places])
        check_finite(losses)
        loss_sum += float(losses.double().sum())
        hit_sum += int(hits.sum())
    return loss_sum, hit_sum
