"""Tokens a second of a GPT against nanoGPT's training loop, each with its best setting of compile.

    python benchmarks/nanogpt_step.py --nanogpt PATH data.path=../shared/data/wikitext-2

Both have the same architecture (pre-norm, layer norm, GELU, no biases, tied table, no dropout), sizes, tokens, batch,
AdamW, clipping and schedule. With `--nanogpt` it is train.py of that checkout, in a process of its own, by the times it
prints; without, the loop of peers_nanogpt.py, written from the published settings. Ours is `train(cfg)` with its
defaults. Steps in which something is compiled or evaluated do not count.
"""

import argparse
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peers_nanogpt as nanogpt
import torch
import torch.nn.functional as F
from measure import Ratio, alternate, circumstances, publish, table
from throughput import Clock

from lit_tfm import config
from lit_tfm.build import build_data
from lit_tfm.train import train

GOAL = 1.05
SKIP = 4  # steps at the start of a turn: compiling, evaluating, first allocations


def words(options: argparse.Namespace, compiled: bool, steps: int) -> list[str]:
    """The command line of our run."""
    model = ["model=gpt2_2019", f"model.d_model={options.d_model}", f"model.n_layers={options.layers}"]
    model += ["model.n_heads=4", "model.bias=false", "model.activation=gelu", "model.dropout=0.0"]
    model += [f"model.max_length={options.length}", f"model.compile={str(compiled).lower()}"]
    data = [f"data.block_size={options.length}", f"data.batch_size={options.batch}", "data.val_limit=1"]
    data += ["data.cross_documents=true", f"tokenizer.vocab_size={options.vocab}"]
    pace = [f"trainer.max_steps={steps}", "trainer.val_every=1000000", "budget=null"]
    optimizer = ["optimizer=adamw", "schedule=cosine", "trainer.accelerator=cpu", "trainer.precision=32"]
    return [*model, "task=causal_lm", "data=wikitext2", "tokenizer=bpe", *data, *pace, *optimizer, *options.words]


def ours(options: argparse.Namespace, compiled: bool) -> float:
    """Seconds of a step."""
    clock = Clock(SKIP)
    with tempfile.TemporaryDirectory() as folder:
        cfg = config.compose([*words(options, compiled, SKIP + options.steps), f"output_dir={folder}/run"])
        train(cfg, quiet=True, callbacks=[clock])
    return clock.step


def recipe(options: argparse.Namespace) -> nanogpt.Recipe:
    return nanogpt.Recipe(
        n_layer=options.layers,
        n_head=4,
        n_embd=options.d_model,
        block_size=options.length,
        batch_size=options.batch,
        max_iters=SKIP + options.steps,
    )


def loop(options: argparse.Namespace, tokens: np.ndarray, vocab: int, compiled: bool) -> float:
    """Seconds of a step of the loop that peers_nanogpt.py describes."""
    made = recipe(options)
    model = nanogpt.GPT(made, vocab)
    forward = torch.compile(model) if compiled else model
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": made.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=made.learning_rate, betas=(made.beta1, made.beta2))
    ends = []
    for step in range(made.max_iters):
        for group in optimizer.param_groups:
            group["lr"] = made.rate(step)
        inputs, labels = nanogpt.windows(tokens, made)
        F.cross_entropy(forward(inputs).flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), made.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(time.perf_counter())
    return (ends[-1] - ends[SKIP - 1]) / options.steps


def checkout(options: argparse.Namespace, tokens: np.ndarray, vocab: int, compiled: bool) -> float:
    """Seconds of a step of the real train.py, the mean of those it prints."""
    made = recipe(options)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("model.py", "configurator.py", "train.py"):
            Path(folder, name).write_text(Path(options.nanogpt, name).read_text())
        data = Path(folder, "data", "words")
        data.mkdir(parents=True)
        for split in ("train", "val"):
            tokens.astype(np.uint16).tofile(data / f"{split}.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab}))
        settings = {**vars(made), "dropout": 0.0, "compile": compiled, "device": "cpu", "dataset": "words"}
        settings |= {"eval_interval": 10**6, "eval_iters": 1, "log_interval": 1, "gradient_accumulation_steps": 1}
        settings |= {"lr_decay_iters": made.max_iters}
        command = [sys.executable, "train.py", *(f"--{name}={value}" for name, value in settings.items())]
        said = subprocess.run(command, cwd=folder, env=os.environ, check=True, capture_output=True, text=True).stdout
    times = [float(ms) / 1000 for ms in re.findall(r"^iter \d+:.* time ([\d.]+)ms", said, re.MULTILINE)]
    return statistics.mean(times[SKIP : SKIP + options.steps])


def contestants(options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    data = build_data(config.compose(words(options, False, 1)))
    tokens, vocab = np.asarray(data.stores["train"].tokens), data.facts.tokenizer.vocab_size
    peer = checkout if options.nanogpt else loop
    sides: dict[str, Callable[[], float]] = {}
    for compiled in options.compile:
        name = "compiled" if compiled else "eager"
        sides[f"ours, {name}"] = lambda compiled=compiled: ours(options, compiled)
        sides[f"nanoGPT, {name}"] = lambda compiled=compiled: peer(options, tokens, vocab, compiled)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT; without, a loop written from its settings")
    parser.add_argument("--compile", nargs="+", choices=["false", "true"], default=["false", "true"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of a turn that count")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--quick", action="store_true", help="three turns of six steps, nothing compiled")
    parser.add_argument("--dry", action="store_true", help="print the table only")
    parser.add_argument("words", nargs="*", help="as on the command line of train, e.g. data.path=...")
    options = parser.parse_args()
    options.compile = [word == "true" for word in options.compile]
    if options.quick:
        options.rounds, options.steps, options.compile = min(options.rounds, 3), min(options.steps, 6), [False]
    seconds = alternate(contestants(options), options.rounds)
    middle = {name: statistics.median(of) for name, of in seconds.items()}
    best = {side: min((n for n in middle if n.startswith(side)), key=middle.get) for side in ("ours", "nanoGPT")}
    tokens = options.length * options.batch
    rows = [
        [name, f"{tokens / step:,.0f}", "best of its side" if name in best.values() else ""]
        for name, step in middle.items()
    ]
    ratio = Ratio.of([1 / s for s in seconds[best["ours"]]], [1 / s for s in seconds[best["nanoGPT"]]])
    who = "train.py of a checkout" if options.nanogpt else "a loop written from its settings"
    lines = [
        circumstances("lightning"),
        f"nanoGPT is {who}. {options.rounds} turns of {options.steps} steps; {options.layers} layers of "
        f"{options.d_model}, {options.batch} x {options.length} tokens, {options.vocab:,} words.",
        table(["side", "tokens/s", ""], rows),
        f"Ours / nanoGPT, each at its best: {ratio}. The goal is {GOAL}.",
    ]
    publish("nanogpt_step", "\n\n".join(lines), options.dry)


if __name__ == "__main__":
    main()
