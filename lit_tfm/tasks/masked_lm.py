"""Masked language modelling: some tokens are hidden and predicted from both sides (Devlin et al. 2019).

Letters: B blocks, T tokens, M masked tokens of the whole batch, C model dim, V vocabulary.
"""

import numpy as np

from lit_tfm.data.noise import uniform
from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.models.encoder import Encoder
from lit_tfm.tasks.base import Batch, StepOutput
from lit_tfm.tasks.language import IGNORED, LanguageTask, document_ids, language_head, pad, real, tensors

# Streams of the counter-based noise: one number a decision, so that no decision moves another.
WHICH, HOW, WHAT = 0, 1, 2


class MaskingCollator:
    """Blocks of tokens -> input_ids with masks, labels, and the flat positions of the masked tokens.

    The masks of a block are a pure function of (seed, epoch, block): the same on every rank and after a resume, fresh
    every epoch. The number of masked tokens a block is fixed at `rate` of its tokens, not drawn: less variance, and
    shapes that stay the same from batch to batch.
    """

    extra_tokens = 0

    def __init__(self, tokenizer: Tokenizer, rate: float, replace: tuple[float, float, float], whole_word: bool):
        tokenizer.require("mask", "pad", "sep", task="masked_lm")
        self.mask_id, self.pad_id = tokenizer.mask_id, tokenizer.pad_id
        self.vocab_size, self.seed = tokenizer.vocab_size, 0
        self.rate, self.replace = rate, replace
        special = [tokenizer.pad_id, tokenizer.sep_id, tokenizer.cls_id, tokenizer.mask_id]
        self.special = np.zeros(tokenizer.vocab_size, dtype=bool)
        self.special[[i for i in special if i is not None]] = True
        self.ordinary = np.flatnonzero(~self.special)  # what a random replacement is drawn from
        self.word_start = tokenizer.word_start if whole_word else None

    def __call__(self, examples: list[dict]) -> Batch:
        rows = [example["tokens"] for example in examples]
        tokens = pad(rows, self.pad_id)  # (B, T)
        present = real(rows, tokens.shape[1])
        counted = present & ~np.array([[example["key"].filler] for example in examples])
        hidden = self._choose(tokens, counted & ~self.special[tokens], examples)
        labels = np.where(hidden, tokens, IGNORED)
        return tensors(
            {
                "input_ids": self._replace(tokens, hidden, examples),
                "labels": labels,
                "targets_at": np.flatnonzero(hidden),  # (M,) so that only masked rows reach the head, without a sync
                "attention_mask": None if present.all() else present,
                "document_ids": document_ids(examples, tokens.shape[1]),
                "n_tokens": int(counted.sum()),
            }
        )

    def _noise(self, examples: list[dict], stream: int, length: int) -> np.ndarray:
        keys = [example["key"] for example in examples]
        return uniform(self.seed, np.array([k.epoch for k in keys]), np.array([k.index for k in keys]), stream, length)

    def _choose(self, tokens: np.ndarray, candidates: np.ndarray, examples: list[dict]) -> np.ndarray:
        """(B, T) bool: `rate` of each row's candidates, at least one where there is any."""
        draw = self._noise(examples, WHICH, tokens.shape[1])
        if self.word_start is not None:
            starts = self.word_start[tokens]
            starts[:, 0] = True  # a block may begin in the middle of a word
            draw = np.take_along_axis(draw, np.cumsum(starts, axis=1) - 1, axis=1)  # a word's tokens share one draw
        draw = np.where(candidates, draw, 2.0)
        n = candidates.sum(1)
        wanted = np.minimum(np.maximum(np.rint(self.rate * n), 1), n).astype(int)
        # The draw of the last token that is wanted; whole words may go a little beyond.
        edge = np.take_along_axis(np.sort(draw, axis=1), np.maximum(wanted - 1, 0)[:, None], axis=1)
        return candidates & (draw <= edge)

    def _replace(self, tokens: np.ndarray, hidden: np.ndarray, examples: list[dict]) -> np.ndarray:
        mask, random, _ = self.replace
        if mask == 1.0:
            return np.where(hidden, self.mask_id, tokens)
        how = self._noise(examples, HOW, tokens.shape[1])
        what = self.ordinary[(self._noise(examples, WHAT, tokens.shape[1]) * len(self.ordinary)).astype(int)]
        changed = np.where(how < mask, self.mask_id, np.where(how < mask + random, what, tokens))
        return np.where(hidden, changed, tokens)


class MaskedLM(LanguageTask):
    """Predict hidden tokens with an encoder.

    `rate`: the share of tokens that are hidden (BERT 0.15; more learns faster, Wettig et al. 2023, arXiv 2202.08005).
    `replace`: of those, the shares that become the mask token, a random token, and stay (BERT 0.8, 0.1, 0.1).
    `whole_word`: all pieces of a word are hidden together.
    """

    architectures = (Encoder,)
    headline = (*LanguageTask.headline, "masked_accuracy")
    writes_nothing = "a masked LM continues no text, it fills masks; predict does"

    def __init__(
        self,
        *args,
        rate: float = 0.3,
        replace: tuple[float, float, float] = (1.0, 0.0, 0.0),
        whole_word: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rate, self.replace, self.whole_word = rate, tuple(replace), whole_word
        self.head_share = rate
        self.head = language_head(self.model)

    def collator(self) -> MaskingCollator:
        return MaskingCollator(self.facts.tokenizer, self.rate, self.replace, self.whole_word)

    def step(self, batch: Batch) -> StepOutput:
        hidden = self.model.hidden(**self.model_inputs(batch))  # (B, T, C)
        rows = hidden.flatten(0, 1)[batch["targets_at"]]  # (M, C)
        labels = batch["labels"].flatten()[batch["targets_at"]]
        return self.training_loss(rows, labels) if self.training else self.vocabulary_loss(self.head(rows), labels)

    def report(self, means: dict[str, float], stage: str) -> dict[str, float]:
        metrics = super().report(means, stage)
        metrics["masked_accuracy"] = metrics.pop("accuracy")
        return metrics

    def samples(self, batch: Batch, decode=None, limit: int = 4) -> list[tuple[str, str]]:
        """Blocks with their masks, and the same with the masks filled by the model's first choice."""
        inputs = {name: value[:limit] for name, value in self.model_inputs(batch).items()}
        asked = inputs["input_ids"]
        hidden = self.model.hidden(**inputs)  # (B, T, C)
        targets = batch["labels"][:limit] != IGNORED  # (B, T)
        filled = asked.clone()
        filled[targets] = self.head(hidden[targets]).argmax(-1)
        text, pad_id = self.facts.tokenizer.decode, self.facts.tokenizer.pad_id
        return [
            (text(masked[masked != pad_id].tolist(), skip_special=False), text(guess.tolist()))
            for masked, guess in zip(asked, filled, strict=True)
        ]
