"""Causal language modelling: every token from those before it.

Letters: B blocks, T tokens, C model dim, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.models.decoder import Decoder
from lit_tfm.tasks.base import Batch, StepOutput
from lit_tfm.tasks.language import IGNORED, LanguageTask, document_ids, language_head, pad, real, tensors
from lit_tfm.tasks.reader import DecoderReader, Opening, Question, check_room


class ShiftCollator:
    """Blocks of T + 1 tokens -> T inputs and, shifted by one, T labels.

    No attention mask: padding stands at the right, where a causal model never looks from a real token.
    """

    extra_tokens = 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.require("sep", task="causal_lm")
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.sep_id
        self.seed = 0  # no noise; set by connect() like that of other collators

    def __call__(self, examples: list[dict]) -> Batch:
        rows = [example["tokens"] for example in examples]
        tokens = pad(rows, self.pad_id)  # (B, T + 1)
        counted = real(rows, tokens.shape[1]) & ~np.array([[example["key"].filler] for example in examples])
        length = tokens.shape[1] - 1
        return tensors(
            {
                "input_ids": np.ascontiguousarray(tokens[:, :-1]),
                "labels": np.where(counted[:, 1:], tokens[:, 1:], IGNORED),
                "document_ids": document_ids(examples, length),
                "n_tokens": int(counted[:, 1:].sum()),
            }
        )


class CausalLM(LanguageTask):
    """Predict the next token with a decoder; a document's first token from the separator before it."""

    architectures = (Decoder,)
    converses = True  # what was written is read again as part of the next prompt
    headline = (*LanguageTask.headline, "accuracy")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.head = language_head(self.model)

    def collator(self) -> ShiftCollator:
        return ShiftCollator(self.facts.tokenizer)

    def step(self, batch: Batch) -> StepOutput:
        hidden = self.model.hidden(**self.model_inputs(batch))  # (B, T, C)
        rows, labels = hidden.flatten(0, 1), batch["labels"].flatten()
        return self.training_loss(rows, labels) if self.training else self.vocabulary_loss(self.head(rows), labels)

    def reader(self, attention_mask: Tensor | None = None) -> DecoderReader:
        """What `generation.decode` calls; see tasks/reader.py."""
        return DecoderReader(self.model, self.head, attention_mask)

    def question(self, text: str) -> Question:
        """The prompt as it is, special tokens by their names; an empty one begins a new document.

        Raises UserError where it is longer than the model's positions.
        """
        tokenizer = self.facts.tokenizer
        ids = tokenizer.encode(text, special=True).tolist() if text else []
        return Question(text, check_room(ids or [tokenizer.sep_id], self.model.config.max_length), goes_on=True)

    def open(self, questions: list[Question], max_new_tokens: int) -> Opening:
        """Prompts of several lengths stand side by side, padded on the left."""
        padding = self.facts.tokenizer.pad_id
        rows = [question.ids for question in questions]
        longest = max(len(ids) for ids in rows)
        fill = self.facts.tokenizer.sep_id if padding is None else padding
        tokens = torch.tensor([[fill] * (longest - len(ids)) + ids for ids in rows], device=self.device)  # (B, T)
        present = None
        if any(len(ids) < longest for ids in rows):
            lengths = torch.tensor([len(ids) for ids in rows], device=self.device)
            present = torch.arange(longest, device=self.device) >= longest - lengths[:, None]
        return Opening(self.reader(present), tokens, present)

    def samples(self, batch: Batch, decode, limit: int = 4) -> list[tuple[str, str]]:
        """The first half of blocks, and how the model goes on."""
        blocks = batch["input_ids"][:limit]
        half = max(1, blocks.shape[1] // 2)
        prompt = blocks[:, :half]
        written = decode(self.reader(), prompt, max_new_tokens=blocks.shape[1] - half)
        text = self.facts.tokenizer.decode
        return [(text(asked.tolist()), text(said.tolist())) for asked, said in zip(prompt, written, strict=True)]
