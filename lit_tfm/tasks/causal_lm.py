"""Causal language modelling: every token from those before it.

Letters: B blocks, T tokens, C model dim, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.models.decoder import Decoder
from lit_tfm.nn.cache import KVCache
from lit_tfm.tasks.base import Batch, StepOutput
from lit_tfm.tasks.language import IGNORED, LanguageTask, document_ids, language_head, pad, real, tensors


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
    headline = (*LanguageTask.headline, "accuracy")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.head = language_head(self.model)

    def collator(self) -> ShiftCollator:
        return ShiftCollator(self.facts.tokenizer)

    def step(self, batch: Batch) -> StepOutput:
        hidden = self.model.hidden(**self.model_inputs(batch))  # (B, T, C)
        return self.vocabulary_loss(self.head(hidden.flatten(0, 1)), batch["labels"].flatten())

    def reader(self, attention_mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """What `generation.decode` calls: takes further tokens (B, n), gives logits (B, V) of the next one.

        `attention_mask` (B, T) goes with the first tokens read, the prompt: shorter prompts are padded on the left.
        """
        cache = KVCache(self.model.config.max_length)
        masks = iter([attention_mask])

        def read(tokens: Tensor) -> Tensor:
            hidden = self.model.hidden(tokens, attention_mask=next(masks, None), cache=cache)
            return self.head(hidden[:, -1])

        return read

    def samples(self, batch: Batch, decode, limit: int = 4) -> list[tuple[str, str]]:
        """The first half of blocks, and how the model goes on."""
        blocks = batch["input_ids"][:limit]
        half = max(1, blocks.shape[1] // 2)
        prompt = blocks[:, :half]
        written = decode(self.reader(), prompt, max_new_tokens=blocks.shape[1] - half)
        text = self.facts.tokenizer.decode
        return [(text(asked.tolist()), text(said.tolist())) for asked, said in zip(prompt, written, strict=True)]
