"""Keys and values of the tokens already decoded, passed to the model as an argument: modules hold no state.

Buffers are made on first use, of the full length: decoding neither grows nor copies them.

Shape letters: B batch, T new tokens, S cached tokens, K key-value heads, D head dim.
"""

import torch
from torch import Tensor


class LayerCache:
    """One layer's share of a `KVCache`."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.keys: Tensor | None = None  # (B, K, max_length, D)
        self.values: Tensor | None = None
        self.memory: tuple[Tensor, Tensor] | None = None  # cross-attention: computed once, at the first token

    def extend(self, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write (B, K, T, D) at `start`; all keys and values up to there, (B, K, start + T, D), as views."""
        stop = start + keys.size(2)
        if self.keys is None:
            batch, heads, _, dim = keys.shape
            self.keys = keys.new_empty(batch, heads, self.max_length, dim)
            self.values = values.new_empty(batch, heads, self.max_length, dim)
        self.keys[:, :, start:stop] = keys
        self.values[:, :, start:stop] = values
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def reorder(self, rows: Tensor, length: int, memory: bool = True) -> None:
        if self.keys is not None and len(rows) == self.keys.size(0):
            # Only what is written: most of the buffers is not, and a beam search comes here for every token.
            for buffer in (self.keys, self.values):
                buffer[:, :, :length] = buffer[rows, :, :length]
        elif self.keys is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
        if self.memory is not None and memory:
            self.memory = (self.memory[0][rows], self.memory[1][rows])


class KVCache:
    """A text being decoded (or B of them): `KVCache(max_length)`, then `model.hidden(ids, cache=cache)` repeatedly.

    `length` tokens are held; the next ones get the positions after them. For inference: nothing is detached, so decode
    under `torch.no_grad()`.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self.seen: Tensor | None = None  # (B, max_length) bool, once a padding mask was given
        self._layers: dict[int, LayerCache] = {}
        self._embedded: Tensor | None = None  # (B, max_length, C), only of a model whose tokens look at neighbours

    def layer(self, index: int) -> LayerCache:
        return self._layers.setdefault(index, LayerCache(self.max_length))

    def see(self, attention_mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
        """Note which of the new tokens are no padding ((B, T) bool, None: all); the same of all tokens so far (B, S).

        Raises ValueError when the tokens do not fit.
        """
        stop = self.length + tokens
        if stop > self.max_length:
            raise ValueError(f"{stop} tokens do not fit a KVCache({self.max_length})")
        if attention_mask is not None and self.seen is None:
            self.seen = torch.ones(batch, self.max_length, dtype=torch.bool, device=attention_mask.device)
        if self.seen is None:
            return None
        if attention_mask is not None:
            self.seen[:, self.length : stop] = attention_mask
        return self.seen[:, :stop]

    def embedded(self, x: Tensor) -> Tensor:
        """Note the embedded new tokens (B, T, C); those before them, (B, length, C), as a view."""
        if self._embedded is None:
            self._embedded = x.new_empty(x.size(0), self.max_length, x.size(2))
        self._embedded[:, self.length : self.length + x.size(1)] = x
        return self._embedded[:, : self.length]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        self.length = min(self.length, length)
        if self.seen is not None:
            self.seen[:, self.length :] = True

    def reorder(self, rows: Tensor, memory: bool = True) -> None:
        """Keep, repeat or swap rows of the batch ((N,) int64): the step between two tokens of a beam search.

        `memory=False` where rows only change places with those of the same memory: that of cross-attention stays.
        """
        for layer in self._layers.values():
            layer.reorder(rows, self.length, memory)
        if self.seen is not None:
            self.seen = self.seen[rows]
        if self._embedded is not None and len(rows) == len(self._embedded):
            self._embedded[:, : self.length] = self._embedded[rows, : self.length]
        elif self._embedded is not None:
            self._embedded = self._embedded[rows]
