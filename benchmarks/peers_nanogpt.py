"""nanoGPT as a contestant: its CPU recipe for characters (README of karpathy/nanoGPT, "I only have a macbook").

`train_checkout` runs the real train.py of a checkout. `train` is a loop of our own, written from the published
settings, for where no checkout is at hand: the same architecture, optimizer, schedule, batches and clipping.

Letters: B batch, T tokens, C model dim, V vocabulary.
"""

import importlib.util
import math
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from curves import Curve, Point, Stopwatch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """The settings of the README's command line over config/train_shakespeare_char.py and train.py's defaults."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64
    batch_size: int = 12
    max_iters: int = 2000
    learning_rate: float = 1e-3
    min_lr: float = 1e-4
    warmup_iters: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to `min_lr`."""
        if step < self.warmup_iters:
            return self.learning_rate * (step + 1) / (self.warmup_iters + 1)
        done = (step - self.warmup_iters) / max(1, self.max_iters - self.warmup_iters)
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (self.learning_rate - self.min_lr)


# ---- our own loop --------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Pre-norm attention and a feed-forward of four times the width, GELU, no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.attended = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        )  # (B, H, T, D)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)  # (B, T, C)
        x = x + self.attended(mixed)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    """ids (B, T) -> logits (B, T, V); the head is the embedding's table, positions are learned."""

    def __init__(self, recipe: Recipe, vocab_size: int) -> None:
        super().__init__()
        width = recipe.n_embd
        self.tokens, self.places = nn.Embedding(vocab_size, width), nn.Embedding(recipe.block_size, width)
        self.layers = nn.Sequential(*(Layer(width, recipe.n_head) for _ in range(recipe.n_layer)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # GPT-2's start; what ends in the residual stream is smaller by its depth
                last = name.endswith(("attended.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * recipe.n_layer) if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.size(1)))
        return F.linear(self.norm(self.layers(x)), self.tokens.weight)


def train(
    recipe: Recipe, tokens: np.ndarray, vocab_size: int, measure: Callable[[nn.Module], float], every: int, seed: int
) -> tuple[Curve, int]:
    """Losses along the way, at training seconds that leave `measure` out; and the number of parameters."""
    torch.manual_seed(seed)
    model = GPT(recipe, vocab_size)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2))
    curve, stopwatch = [], Stopwatch()
    stopwatch.start()
    for step in range(recipe.max_iters):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        inputs, labels = windows(tokens, recipe)
        F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % every == 0 or step + 1 == recipe.max_iters:
            stopwatch.stop()
            curve.append(Point(step + 1, stopwatch.seconds, measure(model), stopwatch.cpu))
            stopwatch.start()
    return curve, sum(p.numel() for p in model.parameters())


def windows(tokens: np.ndarray, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A batch of windows from anywhere in the text: inputs (B, T) and, one further, labels (B, T)."""
    starts = torch.randint(len(tokens) - recipe.block_size, (recipe.batch_size,)).tolist()
    rows = [torch.from_numpy(tokens[at : at + recipe.block_size + 1].astype(np.int64)) for at in starts]
    together = torch.stack(rows)  # (B, T + 1)
    return together[:, :-1], together[:, 1:]


# ---- a checkout ----------------------------------------------------------------------------------------------------


def train_checkout(
    checkout: Path, folder: Path, recipe: Recipe, tokens: np.ndarray, vocab_size: int, measure: Callable, seed: int
) -> tuple[Curve, int]:
    """The real train.py, in `folder`: its last loss by `measure`, and the training seconds of all its steps.

    It prints the time of each step; those of the two that evaluate are taken to be like the others. Only the seed is
    changed, which train.py has no option for.
    """
    for name in ("model.py", "configurator.py"):
        shutil.copy(checkout / name, folder)
    script = (checkout / "train.py").read_text().replace("torch.manual_seed(1337", f"torch.manual_seed({seed}")
    (folder / "train.py").write_text(script)
    data = folder / "data" / "characters"
    data.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        tokens.astype(np.uint16).tofile(data / f"{split}.bin")  # its own validation is not what is compared
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
    settings = {**vars(recipe), "lr_decay_iters": recipe.max_iters, "dropout": 0.0, "compile": False, "device": "cpu"}
    settings |= {"dataset": "characters", "out_dir": "out", "eval_interval": recipe.max_iters, "eval_iters": 1}
    settings |= {"gradient_accumulation_steps": 1, "log_interval": 1, "always_save_checkpoint": True}
    words = [f"--{name}={value}" for name, value in settings.items()]
    said = subprocess.run(
        [sys.executable, "train.py", *words], cwd=folder, env=os.environ, check=True, capture_output=True, text=True
    ).stdout
    times = [float(ms) / 1000 for ms in re.findall(r"^iter \d+:.* time ([\d.]+)ms", said, re.MULTILINE)]
    usual = times[1 : recipe.max_iters]  # steps 0 and max_iters evaluate
    seconds = sum(usual) + (recipe.max_iters - len(usual)) * statistics.median(usual)
    model = _load(folder, vocab_size, recipe)
    loss = measure(lambda ids: model(ids, ids)[0])  # without targets it gives the last position's logits only
    return [Point(recipe.max_iters, seconds, loss)], sum(p.numel() for p in model.parameters())


def _load(folder: Path, vocab_size: int, recipe: Recipe) -> nn.Module:
    """The model of its checkpoint, built by its own model.py."""
    module = _import(folder / "model.py")
    saved = torch.load(folder / "out" / "ckpt.pt", weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    return model.eval()


def _import(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module
