"""Tokens a second at equal architecture and work, against Hugging Face's Trainer: BERT, GPT-2 and T5 by the papers.

    python benchmarks/throughput.py data.path=../shared/data/wikitext-2

Each side runs through its whole trainer, with the data loading, masking, logging and learning-rate schedule that belong
to it: `train(cfg)` with its defaults, and the recipes run_mlm, run_clm and, for span corruption, what T5's paper says.
Both have the layers, widths, vocabulary, dropout, batch, AdamW and fp32 of the other, and learn from the same tokens.
They take turns in short runs; the first steps of each run are left out.

Hugging Face's BERT has a further dense layer and norm in its head, which is taken out, and its T5 ties its tables
whatever it is told, so ours are tied as well: both compute the same.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import peers_huggingface as huggingface
import torch
from lightning import Callback
from measure import Ratio, alternate, circumstances, publish, table
from pictures import ratios
from torch import nn

from lit_tfm import config
from lit_tfm import hardware as machines
from lit_tfm.build import build, build_data
from lit_tfm.data.module import TextData
from lit_tfm.data.sampling import Key
from lit_tfm.train import train


@dataclass(frozen=True)
class Shape:
    """What both sides are built from."""

    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    length: int = 128  # tokens of a block
    batch: int = 16  # blocks
    vocab: int = 8192


MODELS = {"bert": "bert_base_2018", "gpt": "gpt2_2019", "t5": "t5_v1_1"}
TASKS = {
    "bert": ["task=masked_lm", "tokenizer=wordpiece", "task.rate=0.15", "task.replace=[0.8,0.1,0.1]"],
    "gpt": ["task=causal_lm", "tokenizer=bpe"],
    "t5": ["task=span_corruption", "tokenizer=bpe", "tokenizer.sentinels=100"],
}
GOALS = {"bert": 1.8, "gpt": 1.2, "t5": 1.3}


def words(kind: str, shape: Shape, steps: int, more: list[str]) -> list[str]:
    """The command line of our run."""
    model = [f"model={MODELS[kind]}", f"model.d_model={shape.d_model}", f"model.n_layers={shape.n_layers}"]
    model += [f"model.n_heads={shape.n_heads}"] + ["model.d_ff=512", "model.tie_embeddings=true"] * (kind == "t5")
    model += ["model.n_segments=0"] * (kind == "bert") + [f"model.max_length={max(shape.length, 128)}"]
    data = [f"data.block_size={shape.length}", f"data.batch_size={shape.batch}", "data.val_limit=1"]
    # One text from end to end, as run_mlm's and run_clm's group_texts have it.
    data += ["data.cross_documents=true", f"tokenizer.vocab_size={shape.vocab}"]
    pace = [f"trainer.max_steps={steps}", "trainer.val_every=1000000", "budget=null"]
    optimizer = ["optimizer=adamw", "schedule=linear", "trainer.accelerator=cpu", "trainer.precision=32"]
    return [*model, *TASKS[kind], "data=wikitext2", *data, *pace, *optimizer, *more]


class Clock(Callback):
    """Seconds of the steps after the first `skip`."""

    def __init__(self, skip: int) -> None:
        self.skip, self.ends = skip, []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.perf_counter())

    @property
    def step(self) -> float:
        return (self.ends[-1] - self.ends[self.skip - 1]) / (len(self.ends) - self.skip)


class PeerClock(huggingface.TrainerCallback):
    def __init__(self, skip: int) -> None:
        self.skip, self.ends = skip, []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())

    step = Clock.step


def ours(kind: str, shape: Shape, steps: int, skip: int, more: list[str]) -> Callable[[], float]:
    """A function that trains `skip` + `steps` steps and gives the seconds of one."""

    def run() -> float:
        clock = Clock(skip)
        with tempfile.TemporaryDirectory() as folder:
            cfg = config.compose([*words(kind, shape, skip + steps, more), f"output_dir={folder}/run"])
            train(cfg, quiet=True, callbacks=[clock])
        return clock.step

    return run


# ---- Hugging Face --------------------------------------------------------------------------------------------------


class WithoutTransform(nn.Module):
    """BERT's masked-LM head as ours: the tied table alone."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def peer_model(kind: str, shape: Shape) -> nn.Module:
    torch.manual_seed(0)
    if kind == "bert":
        found = huggingface.bert(shape.vocab, shape.d_model, shape.n_layers, shape.n_heads)
        model = huggingface.masked_lm(found, 0)
        model.cls.predictions.transform = WithoutTransform()
        return model
    if kind == "gpt":
        sizes = {"n_embd": shape.d_model, "n_layer": shape.n_layers, "n_head": shape.n_heads}
        options = huggingface.transformers.GPT2Config(vocab_size=shape.vocab, n_positions=shape.length, **sizes)
        return huggingface.transformers.GPT2LMHeadModel(options)
    options = huggingface.transformers.T5Config(
        vocab_size=shape.vocab,
        d_model=shape.d_model,
        d_kv=shape.d_model // shape.n_heads,
        d_ff=512,
        num_layers=shape.n_layers,
        num_heads=shape.n_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return huggingface.transformers.T5ForConditionalGeneration(options)


def peer_collator(kind: str, data: TextData, folder: Path) -> Callable:
    data.facts.tokenizer.save(folder / "tokenizer.json")
    tokenizer = huggingface.tokenizer(folder / "tokenizer.json")
    if kind == "bert":
        return huggingface.masking(tokenizer)
    if kind == "gpt":
        return huggingface.transformers.default_data_collator
    return SpanPeer(data)


class SpanPeer:
    """Span corruption one example after the other, as the collators in use do it (Raffel et al. 2020, section 3.1.4):
    15 % of the tokens in spans of 3 on average, each replaced by a sentinel; the targets are sentinels and spans."""

    def __init__(self, data: TextData) -> None:
        ours = data.facts.tokenizer
        self.sentinels, self.end = np.array(ours.sentinel_ids), ours.sep_id
        self.random = np.random.default_rng(0)

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        rows = [self.corrupt(np.array(example["input_ids"])) for example in examples]
        sides = zip(*rows, strict=True)
        inputs, labels = (torch.stack([torch.from_numpy(row) for row in side]) for side in sides)
        return {"input_ids": inputs, "labels": labels}

    def corrupt(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden = self.mask(len(tokens))
        return self.replaced(tokens, hidden), np.append(self.replaced(tokens, ~hidden), self.end)

    def mask(self, length: int) -> np.ndarray:
        noise = round(length * 0.15)
        spans = max(1, round(noise / 3))
        lengths = np.stack([self.parts(length - noise, spans), self.parts(noise, spans)], axis=1).reshape(-1)
        return np.repeat(np.arange(2 * spans) % 2, lengths).astype(bool)

    def parts(self, total: int, count: int) -> np.ndarray:
        borders = np.sort(self.random.permutation(total - 1)[: count - 1]) + 1
        return np.diff(np.concatenate([[0], borders, [total]]))

    def replaced(self, tokens: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        first = hidden & ~np.concatenate([[False], hidden[:-1]])
        with_sentinels = np.where(first, self.sentinels[np.cumsum(first) - 1], tokens)
        return with_sentinels[~hidden | first]


def peer(kind: str, shape: Shape, steps: int, skip: int, more: list[str]) -> Callable[[], float]:
    """As `ours`, by the Trainer."""
    data = prepared(kind, shape, more)
    shape = replace(shape, vocab=data.facts.tokenizer.vocab_size)
    tokens = np.asarray(data.stores["train"].tokens)
    count = min(len(tokens) // shape.length, (steps + skip) * shape.batch)
    blocks = tokens[: count * shape.length].reshape(count, shape.length)
    examples = [{"input_ids": row} | ({"labels": row} if kind == "gpt" else {}) for row in blocks.tolist()]
    if kind == "bert":  # as run_mlm, which asks the tokenizer once and not for every batch
        ends = np.isin(blocks, [data.facts.tokenizer.sep_id]).astype(int).tolist()
        examples = [example | {"special_tokens_mask": row} for example, row in zip(examples, ends, strict=True)]

    def run() -> float:
        clock = PeerClock(skip)
        with tempfile.TemporaryDirectory() as folder:
            arguments = huggingface.TrainingArguments(
                folder, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=500,
                max_steps=skip + steps, per_device_train_batch_size=shape.batch,
            )  # fmt: skip
            huggingface.Trainer(
                peer_model(kind, shape),
                arguments,
                data_collator=peer_collator(kind, data, Path(folder)),
                train_dataset=huggingface.datasets.Dataset.from_list(examples),
                callbacks=[clock],
            ).train()
        return clock.step

    return run


def prepared(kind: str, shape: Shape, more: list[str]) -> TextData:
    return build_data(config.compose(words(kind, shape, 1, more)))


def same_size(kind: str, shape: Shape, more: list[str]) -> tuple[int, int]:
    """Parameters of both models."""
    cfg = config.compose(words(kind, shape, 1, more))
    task = build(cfg, machines.choose(cfg.trainer)).task
    other = peer_model(kind, replace(shape, vocab=task.facts.tokenizer.vocab_size))
    return tuple(sum(p.numel() for p in model.parameters()) for model in (task, other))


def same_tokens(kind: str, shape: Shape, more: list[str]) -> int:
    """Tokens of an optimizer step, encoder and decoder; both sides read as many."""
    if kind != "t5":
        return shape.length * shape.batch
    cfg = config.compose(words(kind, shape, 1, more))
    parts = build(cfg, machines.choose(cfg.trainer))
    row = {"tokens": np.arange(shape.length), "document_ids": None, "key": Key(0, 0)}
    batch = parts.task.collator()([row])
    return shape.batch * (batch["input_ids"].shape[1] + batch["decoder_input_ids"].shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of a turn, after --skip")
    parser.add_argument("--skip", type=int, default=3)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--quick", action="store_true", help="three turns of six steps")
    parser.add_argument("--dry", action="store_true", help="print the table only")
    parser.add_argument("words", nargs="*", help="as on the command line of train, e.g. data.path=...")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = min(options.rounds, 3), min(options.steps, 6)
    shape = Shape(options.d_model, options.layers, 4, options.length, options.batch, options.vocab)
    rows, found = [], {}
    for kind in options.kind:
        turns = (kind, shape, options.steps, options.skip, options.words)
        seconds = alternate({"ours": ours(*turns), "peer": peer(*turns)}, options.rounds)
        tokens = same_tokens(kind, shape, options.words)
        rates = {side: tokens / np.median(of) for side, of in seconds.items()}
        sizes = " / ".join(f"{size / 1e6:.2f} M" for size in same_size(kind, shape, options.words))
        ratio = Ratio.of([1 / s for s in seconds["ours"]], [1 / s for s in seconds["peer"]])
        found[kind] = ratio
        rows.append([kind, sizes, f"{rates['ours']:,.0f}", f"{rates['peer']:,.0f}", ratio, GOALS[kind]])
    head = ["shape", "parameters, ours / theirs", "tokens/s, ours", "Trainer", "ours / theirs", "goal"]
    line = f"{options.rounds} turns of {options.steps} steps, {shape}."
    lines = [circumstances("lightning", "transformers"), line, table(head, rows)]
    publish("throughput", "\n\n".join(lines), options.dry)
    if not options.dry:
        ratios("speed_throughput", found, GOALS, "tokens/s at equal work, CPU", "Hugging Face's Trainer")


if __name__ == "__main__":
    main()
