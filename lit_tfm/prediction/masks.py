"""Words for the masks of texts ("the [MASK] sat"): what a masked language model predicts.

A text is read as in training: the separator, then its tokens. Masks are filled each on its own, as if the others
stayed hidden.

Letters: B texts, T tokens, M masks of the batch, V vocabulary.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_tfm.data.tokenizers import ROLES
from lit_tfm.errors import UserError
from lit_tfm.evaluation.scoring import check_finite
from lit_tfm.evaluation.subject import Subject
from lit_tfm.prediction.predictor import Prediction, Predictor
from lit_tfm.prediction.rows import Row
from lit_tfm.tasks.language import pad, real

MASK = "[MASK]"


class Masks(Predictor):
    """The `top` likeliest tokens of each mask, and the text with the likeliest ones."""

    columns = ["filled", "probability", "masks"]

    def __init__(self, subject: Subject, top: int) -> None:
        super().__init__(subject, top)
        tokenizer = self.tokenizer
        tokenizer.require("mask", "sep", task="predict")
        self.spelled = tuple(dict.fromkeys((tokenizer.token(tokenizer.mask_id), *ROLES["mask"])))
        special = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, *tokenizer.sentinel_ids]
        self.never = torch.tensor([i for i in special if i is not None], device=subject.device)
        self.max_length = self.task.model.config.max_length
        self.blank_joins = len(tokenizer.encode("a a")) == 2 * len(tokenizer.encode("a"))

    def encode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        parts = [self._parts(row.text) for row in rows]
        flat = iter(self.tokenizer.encode_batch([piece for pieces in parts for piece in self._as_read(pieces)]))
        return [self._item(pieces, [next(flat) for _ in pieces]) for pieces in parts]

    def _parts(self, text: str) -> list[str]:
        """What stands between the masks."""
        for spelled in self.spelled[1:]:
            text = text.replace(spelled, self.spelled[0])
        return text.split(self.spelled[0])

    def _as_read(self, pieces: list[str]) -> list[str]:
        """Where a word's token takes in the blank before it, the blank before a mask is part of what is hidden."""
        if not self.blank_joins:
            return pieces
        return [piece.removesuffix(" ") for piece in pieces[:-1]] + pieces[-1:]

    def _item(self, pieces: list[str], encoded: list[np.ndarray]) -> dict[str, Any]:
        mask = np.array([self.tokenizer.mask_id])
        parts = [np.array([self.tokenizer.sep_id]), encoded[0]]
        for tokens in encoded[1:]:
            parts += [mask, tokens]
        at = np.cumsum([len(part) for part in parts])[1:-1:2]  # (masks,) places
        tokens, kept = np.concatenate(parts), np.arange(len(at))
        if not len(at):
            self.note(f"without a {self.spelled[0]}: left as they are")
        elif len(tokens) > self.max_length:  # what stands around the first mask
            self.note(f"cut to the {self.max_length} tokens around the first mask")
            start = int(np.clip(at[0] - self.max_length // 2, 0, len(tokens) - self.max_length))
            tokens, inside = tokens[start : start + self.max_length], (at >= start) & (at < start + self.max_length)
            self.note("with masks out of reach", int(not inside.all()))
            at, kept = at[inside] - start, np.flatnonzero(inside)
        return {"pieces": pieces, "tokens": tokens[: self.max_length], "at": at, "kept": kept,
                "length": min(len(tokens), self.max_length)}  # fmt: skip

    def answer(self, items: Sequence[dict[str, Any]]) -> list[Prediction]:
        rows = [item["tokens"] for item in items]
        tokens = pad(rows, self.tokenizer.pad_id if self.tokenizer.pad_id is not None else self.tokenizer.sep_id)
        present = real(rows, tokens.shape[1])
        owner = np.concatenate([np.full(len(item["at"]), i) for i, item in enumerate(items)]).astype(np.int64)
        place = np.concatenate([item["at"] for item in items]).astype(np.int64)
        batch = {"input_ids": torch.from_numpy(tokens), "owner": torch.from_numpy(owner), "at": torch.from_numpy(place)}
        batch = self.subject.moved(batch)
        mask = None if present.all() else torch.from_numpy(present).to(self.subject.device)
        likely, ids = np.zeros((0, self.top)), np.zeros((0, self.top), dtype=np.int64)
        if len(owner):
            hidden = self.task.model.hidden(batch["input_ids"], attention_mask=mask)  # (B, T, C)
            logits = self.task.head(hidden[batch["owner"], batch["at"]])  # (M, V)
            check_finite(logits)
            likely, ids = (part.cpu().numpy() for part in self._best(logits))
        return [self._prediction(item, likely[owner == i], ids[owner == i]) for i, item in enumerate(items)]

    def _best(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        likely = logits.double().softmax(-1)
        likely[:, self.never] = -1.0  # marks of the format are no words
        return likely.topk(min(self.top, likely.shape[1]), dim=-1)

    def _prediction(self, item: dict[str, Any], likely: np.ndarray, ids: np.ndarray) -> Prediction:
        masks: list[list[dict[str, Any]]] = [[] for _ in item["pieces"][1:]]
        best: dict[int, int] = {}
        for number, ps, tokens in zip(item["kept"].tolist(), likely.tolist(), ids.tolist(), strict=True):
            known = [(token, round(p, 6)) for token, p in zip(tokens, ps, strict=True) if p >= 0]
            masks[number] = [{"token": self._word(token), "probability": p} for token, p in known]
            best[number] = known[0][0]
        filled = item["pieces"][0]
        for number, after in enumerate(item["pieces"][1:]):
            filled = self._put(filled, best.get(number)) + after
        sure = "|".join(f"{options[0]['probability']:.6f}" if options else "" for options in masks)
        pairs = [[[option["token"], option["probability"]] for option in options] for options in masks]
        return Prediction([filled, sure, json.dumps(pairs, ensure_ascii=False)], {"filled": filled, "masks": masks})

    def _put(self, text: str, token: int | None) -> str:
        if token is None:
            return text + self.spelled[0]
        if self.blank_joins and self.tokenizer.continues_word(token):  # no new word: it goes on with the one before
            text = text.removesuffix(" ")
        return text + self._word(token)

    def _word(self, token: int) -> str:
        """The token's text, without the mark or blank it begins with."""
        text = self.tokenizer.decode([token], skip_special=False)
        return text.removeprefix("##").strip() or text


def require_mask(rows: Sequence[Row], spelled: str) -> None:
    """Raises UserError for a text of the command line that has nothing to fill."""
    for row in rows:
        if not any(name in row.text for name in (spelled, *ROLES["mask"])):
            raise UserError(f"{row.text!r} has no {spelled} to fill; type e.g. 'the {spelled} sat on the mat'")
