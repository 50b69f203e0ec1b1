"""What the model of a config would cost, before it is built: parameters and training FLOPs per token.

The task is made on torch's "meta" device, without weights, with one and with two layers only: parameters grow in a
straight line with the layers, and FLOPs follow from the config. So the same numbers come out as a run records.
"""

import inspect
import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lit_tfm.build import build_task
from lit_tfm.data.facts import DataFacts
from lit_tfm.data.tokenizers import Byte, Char, Tokenizer
from lit_tfm.errors import UserError
from lit_tfm.models.config import TransformerConfig
from lit_tfm.models.cost import parameters
from lit_tfm.tasks.base import Task
from lit_tfm.tasks.language import LanguageTask

NAMES = ("parameters", "flops_per_token")


@dataclass
class StandIn:
    """What a task asks of a tokenizer while it is made: the special tokens of `inner`, and the size of another."""

    inner: Tokenizer
    vocab_size: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Costs:
    """Remembers what it has counted. `vocab_size`: the real one, where the tokenizer has been trained already."""

    def __init__(self, vocab_size: int | None = None) -> None:
        self.vocab_size = vocab_size
        self._tasks: dict[str, list[Task]] = {}
        self._counts: dict[str, list[int]] = {}

    def parameters(self, cfg: DictConfig) -> int:
        """Of the task: the model with its head. Without a real vocabulary: for the largest one allowed."""
        key, config = self._small(cfg), model_config(cfg, self._vocabulary(cfg))
        one, *more = self._counts[key]
        if not isinstance(config, TransformerConfig):
            return one
        layers = (config.n_layers, config.n_decoder_layers)
        return one + sum((n - 1) * (two - one) for n, two in zip(layers, more, strict=False))

    def flops_per_token(self, cfg: DictConfig) -> float:
        """In training, forward and backward, per token of an example of full length."""
        task, config = self._tasks[self._small(cfg)][0], model_config(cfg, self._vocabulary(cfg))
        if isinstance(config, TransformerConfig):
            task.model.config = config
        return task.training_flops(example_length(cfg))

    def _small(self, cfg: DictConfig) -> str:
        """The key under which the small tasks of this config stand."""
        key = _key(cfg)
        if key not in self._tasks:
            self._tasks[key] = self._build(cfg)
            self._counts[key] = [parameters(task) for task in self._tasks[key]]
        return key

    def _build(self, cfg: DictConfig) -> list[Task]:
        """With 1 layer, with 2, and for an encoder-decoder with 1 + 2; of another kind of model the whole."""
        vocabulary = self._vocabulary(cfg)
        if not isinstance(model_config(cfg, vocabulary), TransformerConfig):
            return [_on_meta(cfg, vocabulary)]
        if get_object(cfg.model._target_).kind == "encoder_decoder":
            counts = [(1, 1), (2, 1), (1, 2)]
            return [_on_meta(cfg, vocabulary, n_layers=n, n_decoder_layers=m) for n, m in counts]
        return [_on_meta(cfg, vocabulary, n_layers=n) for n in (1, 2)]

    def _vocabulary(self, cfg: DictConfig) -> int:
        known = self.vocab_size or vocabulary(cfg)
        if known is None:
            raise UserError(
                f"constraints need the size of the vocabulary, and {cfg.choices.get('tokenizer')} finds it in the "
                "data; type fixed.tokenizer.vocab_size=8192, or leave parameters and flops_per_token out"
            )
        return known


def vocabulary(cfg: DictConfig) -> int | None:
    """Entries of the tokenizer: exact for bytes and for a file, else the most it may have; None where it is open."""
    recipe = get_object(cfg.tokenizer._target_)
    if path := cfg.tokenizer.get("path"):
        return Tokenizer.from_file(path).vocab_size
    if recipe is Byte:
        return Byte(sentinels=cfg.tokenizer.get("sentinels", 0)).train(()).vocab_size
    if "vocab_size" in cfg.tokenizer:
        return cfg.tokenizer.vocab_size
    if recipe is Char or not is_dataclass(recipe):
        return None
    return next((field.default for field in fields(recipe) if field.name == "vocab_size"), None)


def model_config(cfg: DictConfig, vocab_size: int = 1 << 16) -> Any:
    """The model's own config dataclass; None for a model without one."""
    kind = getattr(get_object(cfg.model._target_), "Config", None)
    options = {key: value for key, value in OmegaConf.to_container(cfg.model).items() if not key.startswith("_")}
    return kind(**options, vocab_size=vocab_size) if is_dataclass(kind) else None


def example_length(cfg: DictConfig) -> int:
    """Tokens of an example at most: `data.block_size`, or `data.max_length`."""
    allowed = inspect.signature(get_object(cfg.data._target_)).parameters
    key = "block_size" if "block_size" in allowed else "max_length"
    return cfg.data.get(key) or allowed[key].default


def _on_meta(cfg: DictConfig, vocab_size: int, **layers: int) -> Task:
    small = OmegaConf.create({group: OmegaConf.to_container(cfg[group]) for group in ("model", "task")})
    small.model.update(layers)
    small.optimizer, small.schedule = cfg.optimizer, cfg.schedule
    inner = Byte(sentinels=cfg.tokenizer.get("sentinels", 0)).train(())
    with torch.device("meta"):
        return build_task(small, DataFacts(StandIn(inner, vocab_size), {}, _labels(cfg)))


def _labels(cfg: DictConfig) -> tuple[str, ...] | None:
    """As many as the config tells; two where only the data know."""
    if issubclass(get_object(cfg.task._target_), LanguageTask):
        return None
    named = cfg.data.get("labels") or cfg.task.get("label_texts") or ("0", "1")
    return tuple(map(str, named))


def _key(cfg: DictConfig) -> str:
    """All that a small task depends on."""
    model = {k: v for k, v in OmegaConf.to_container(cfg.model).items() if k not in ("n_layers", "n_decoder_layers")}
    parts = [model, *(OmegaConf.to_container(cfg[group]) for group in ("task", "tokenizer"))]
    return json.dumps([*parts, cfg.data.get("labels")], default=str, sort_keys=True)
