"""How text is asked of a task that can write: `question`, `open`, and the reader that generation steps through.

A task that generates text has these methods (see `CausalLM`, `SpanCorruption`):

    question(text) -> Question         what a person typed, as the model will read it; UserError where it can't
    open(questions, max_new_tokens)    a reader over all of them at once, and the tokens it is to read first
    answer(question, ids)              of a question with blanks: the text, and what was written for each of them

and says in `converses` whether what it wrote can be part of the next prompt. One that generates no text says in
`writes_nothing` which verb does what it can do.

Letters: B rows, T tokens, E encoder tokens, N rows after a change, C model dim, V vocabulary.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_tfm.errors import UserError
from lit_tfm.nn.cache import KVCache


@dataclass(frozen=True)
class Question:
    """`text` as it was typed, `ids` as they are read.

    `goes_on`: what is written follows these ids, as opposed to answering them. `pieces`: the text around its blanks, ()
    where it has none.
    """

    text: str
    ids: list[int]
    goes_on: bool = False
    pieces: tuple[str, ...] = ()

    @property
    def blanks(self) -> int:
        return max(0, len(self.pieces) - 1)


class Opening(NamedTuple):
    """`tokens` (B, T) are to be read first; `present` (B, T) bool marks those that are no padding, None: all.

    `rules` say what may be written (see generation/rules.py).
    """

    read: "Reader"
    tokens: Tensor
    present: Tensor | None = None
    rules: tuple[Callable[..., Tensor], ...] = ()


def check_room(ids: list[int], room: int) -> list[int]:
    """The ids. Raises UserError where they are more than the model has positions."""
    if len(ids) > room:
        raise UserError(f"the prompt is {len(ids)} tokens long, the model has {room} positions; give a shorter one")
    return ids


class Reader:
    """Takes the tokens it has not seen yet, (B, n), keeps those it has seen, and gives the next one's logits (B, V)."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        self.model, self.head = model, head
        self.cache = KVCache(model.config.max_length)

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(tokens)[:, -1])

    def hidden(self, tokens: Tensor) -> Tensor:
        """(B, n) -> (B, n, C)."""
        raise NotImplementedError

    def reorder(self, rows: Tensor, memory: bool = True) -> None:
        """Keep, repeat or swap rows ((N,) int64); `memory=False`: only among rows of one question."""
        self.cache.reorder(rows, memory)


class DecoderReader(Reader):
    """`attention_mask` (B, T) goes with the first tokens read, the prompt: shorter prompts are padded on the left."""

    def __init__(self, model: nn.Module, head: nn.Module, attention_mask: Tensor | None = None) -> None:
        super().__init__(model, head)
        self._mask = attention_mask

    def hidden(self, tokens: Tensor) -> Tensor:
        mask, self._mask = self._mask, None
        return self.model.hidden(tokens, attention_mask=mask, cache=self.cache)


class MemoryReader(Reader):
    """Reads the decoder's tokens; `inputs`, the encoder's, are read once: `input_ids` (B, E), `attention_mask`."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, head: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__(model, head)
        # Compiling would take longer than all that is to be read.
        eager = torch.compiler.set_stance("force_eager") if model.config.compile else nullcontext()
        with eager:
            self._memory = model.encode(**inputs)  # (B, E, C)
        self._mask = inputs.get("attention_mask")

    def hidden(self, tokens: Tensor) -> Tensor:
        return self.model.decode(tokens, self._memory, self._mask, cache=self.cache)

    def reorder(self, rows: Tensor, memory: bool = True) -> None:
        super().reorder(rows, memory)
        if memory:
            self._memory = self._memory[rows]
            self._mask = None if self._mask is None else self._mask[rows]
