"""The contestants of gpu_throughput.py and gpu_ladder.py: each trains one model in a process of its own.

`ours` is the product: `train(cfg)` of a shipped model. `nanogpt` is a loop of our own, written from the published
settings of karpathy/nanoGPT's config/train_gpt2.py (or, with `--nanogpt PATH`, around that checkout's model.py and its
`configure_optimizers`); `huggingface` is `Trainer` with bf16 and SDPA. All begin with random weights.

Letters: B batch, T tokens, V vocabulary.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peers_nanogpt import Layer
from torch import Tensor, nn

from lit_tfm.tasks.out_of_memory import ran_out

PROJECT = Path(__file__).resolve().parents[1]
DENSE_BF16 = 989e12  # H100 SXM and H200, FLOP/s; elsewhere MFU over it says nothing


@dataclass(frozen=True)
class Work:
    """A model at its size, the same for every contestant."""

    model: str  # conf/model
    task: str  # conf/task
    length: int  # tokens of an example
    vocab: int  # a multiple of 64, as nanoGPT pads it
    width: int = 768
    layers: int = 12
    heads: int = 12
    batch: int = 32  # examples of a step

    @property
    def targets(self) -> int:
        """Decoder tokens of an example, encoder-decoder only (Raffel et al. 2020: 114 for 512)."""
        return round(0.2227 * self.length) if self.task == "span_corruption" else 0

    @property
    def text(self) -> int:
        """Tokens of text in an example: with spans cut out of 568, 512 go into the encoder."""
        return round(self.length * 568 / 512) if self.task == "span_corruption" else self.length


WORKS = {
    "gpt2_124m": Work("gpt2_124m", "causal_lm", 1024, 50304),
    "bert_base": Work("bert_base", "masked_lm", 512, 30528),
    "t5_base": Work("t5_base", "span_corruption", 512, 32128),
}


def work_of(name: str, tiny: bool, batch: int | None) -> Work:
    """The work of that name; tiny is for a CPU in a moment, the same code on numbers that mean nothing."""
    work = WORKS[name]
    if tiny:
        work = replace(work, length=32, vocab=512, width=32, layers=2, heads=2, batch=2)
    return work if batch is None else replace(work, batch=batch)


# ---- measuring -----------------------------------------------------------------------------------------------------


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class Stopwatch:
    """Seconds of the steps after the first `warmup`; on a GPU the clock is read with an empty queue, twice."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.warmup, self.steps = args.device, args.warmup, args.steps
        self.done, self.examples, self.counted, self.began = 0, 0, 0, 0.0
        self.seconds: float | None = None

    def tick(self, examples: int, counted: int = 0) -> None:
        """After each step: the examples in it, and the tokens the product counted."""
        self.done += 1
        if self.done > self.warmup:
            self.examples += examples
            self.counted += counted
        if self.done == self.warmup:
            wait(self.device)
            self.began = time.perf_counter()
        elif self.done == self.warmup + self.steps:
            wait(self.device)
            self.seconds = time.perf_counter() - self.began

    @property
    def ended(self) -> bool:
        return self.seconds is not None


def flops_of_peer(work: Work) -> float:
    """Training operations of an example in the peer's model: logits for every (decoder) token."""
    from lit_tfm.models.config import TransformerConfig
    from lit_tfm.models.cost import flops_per_token

    config = TransformerConfig(work.vocab, work.width, work.layers, work.heads)
    kind = {"causal_lm": "decoder", "masked_lm": "encoder", "span_corruption": "encoder_decoder"}[work.task]
    targets = work.targets or None
    return flops_per_token(config, work.length, kind, target_length=targets) * (work.length + work.targets)


# ---- ours ----------------------------------------------------------------------------------------------------------


class OurWatch(Stopwatch):
    """A stopwatch that sees more of our steps: the shapes of the timed batches, what is compiled, what waits."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.syncs = args.syncs and args.device == "cuda"
        self.shapes: set[tuple] = set()
        self.graphs: list[int] = []  # compiled before the timed steps, and after them

    def begin_step(self) -> None:
        if self.syncs and self.done == self.warmup + 2:
            listen()

    def end_step(self, batch: dict) -> None:
        if self.syncs:
            torch.cuda.set_sync_debug_mode("default")
        if self.warmup <= self.done < self.warmup + self.steps:
            tables = [(name, *x.shape) for name, x in batch.items() if isinstance(x, Tensor) and x.ndim == 2]
            self.shapes.add(tuple(tables))
        if self.done + 1 in (self.warmup, self.warmup + self.steps):
            self.graphs.append(compiled()[0])
        self.tick(len(batch["input_ids"]), int(batch["n_tokens"]))


def ours(work: Work, args: argparse.Namespace) -> dict:
    """The product on a shipped model. `args.words` are further overrides.

    Tokens are those the collator counted: of whole blocks all, of padded documents the text alone.
    """
    from lightning import Callback

    from lit_tfm.config import compose
    from lit_tfm.nn.heads import LMHead
    from lit_tfm.train import train

    watch, found = OurWatch(args), {}

    class Clock(Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx) -> None:
            watch.begin_step()

        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
            watch.end_step(batch)

        def on_train_end(self, trainer, task) -> None:
            found["flops"] = task.flops_per_token

    if args.whole_head:  # the ladder's rows before the fused head
        LMHead.losses = whole_head
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    with warnings.catch_warnings(record=True) as caught:
        train(compose(words(work, args)), quiet=True, callbacks=[Clock()])
    rate = watch.counted / watch.seconds
    graphs, breaks = compiled()
    return {
        **speed(work, watch, args),
        "tokens_per_second": rate,
        "model_flops": rate * found["flops"],
        "shapes": len(watch.shapes),
        "compiled": {"graphs": graphs, "while timed": watch.graphs[1] - watch.graphs[0], "breaks": breaks},
        "waits": waits(caught),
    }


def compiled() -> tuple[int, int]:
    """Graphs that torch.compile has made in this process, each further one of a block a recompilation; and graph
    breaks, among them blocks it has given up on (after torch._dynamo.config.recompile_limit)."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], counters["graph_break"].total() + counters["unimplemented"].total()


def listen() -> None:
    """From now on torch warns of each wait. Filters in front, as session.hush() has put one for Lightning's modules,
    would drop the waits whose Python line is there."""
    warnings.simplefilter("always")
    torch.cuda.set_sync_debug_mode("warn")


def waits(caught: list[warnings.WarningMessage]) -> list[str]:
    """`file:line: message`, once for each line of Python that waited for the GPU."""
    told = {(place(w.filename), w.lineno, str(w.message)) for w in caught if "synchronizing CUDA" in str(w.message)}
    return sorted({f"{file}:{line}: {message.partition(' (Triggered')[0]}" for file, line, message in told})


def place(filename: str) -> str:
    """A source file without the folders of this machine: from site-packages or the project on, else its name."""
    path = Path(filename)
    if "site-packages" in path.parts:
        return str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else path.name


def corpus(work: Work, args: argparse.Namespace) -> Path:
    """A folder with the text so often that no epoch of the run ends: a whole batch a step, and something over."""
    from lit_tfm.data.tokenizers import Tokenizer

    text = args.text.read_text()
    wanted = examples(work, args) * work.text
    copies = math.ceil(1.25 * wanted / len(Tokenizer.from_file(args.tokenizer).encode(text)))
    folder = args.text.with_name(f"text-{copies}")
    if not (folder / "valid.txt").exists():
        folder.mkdir(exist_ok=True)
        for number in range(copies):  # a file each: a document is tokenized in one piece
            (folder / f"train-{number}.txt").write_text(text)
        (folder / "valid.txt").write_text(text[:20_000])  # the last: then the folder is whole
    return folder


def examples(work: Work, args: argparse.Namespace) -> int:
    """Of the whole run."""
    return work.batch * (args.warmup + args.steps)


def words(work: Work, args: argparse.Namespace) -> list[str]:
    """The command line of the run: the shipped model, AdamW as the peers have, no validation on the way."""
    steps = args.warmup + args.steps
    typed = [f"model={work.model}", f"task={work.task}", "data=text", f"data.path={corpus(work, args)}"]
    typed += ["tokenizer=pretrained", f"tokenizer.path={args.tokenizer}", f"cache_dir={args.text.parent / 'cache'}"]
    typed += [f"data.block_size={work.text}", f"data.batch_size={work.batch}", "data.val_limit=2"]
    typed += [f"model.max_length={max(work.text, 512)}", "optimizer=adamw", f"trainer.max_steps={steps}"]
    typed += ["budget=null", f"trainer.val_every={steps}", f"output_dir={args.folder / 'run'}", "callbacks=[]"]
    typed += [f"trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}", f"trainer.precision={args.precision}"]
    if "data.pack=documents" not in args.words:  # an epoch of whole blocks: all batches have one shape
        typed += [f"data.subset={examples(work, args)}"]
    if args.tiny:
        typed += [f"model.d_model={work.width}", f"model.n_layers={work.layers}", f"model.n_heads={work.heads}"]
    if args.profile:
        typed += ["+callbacks.profile={_target_: lit_tfm.callbacks.profile.Profile}"]
    return [*typed, *args.words]


def whole_head(self: nn.Module, hidden: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """What a head without the fused loss does: all logits (N, V) at once, and autograd through them."""
    loss = F.cross_entropy(self(hidden), labels, ignore_index=-100, reduction="sum", label_smoothing=smoothing)
    return loss.detach(), loss


# ---- nanoGPT -------------------------------------------------------------------------------------------------------


class GPT(nn.Module):
    """ids (B, T), labels (B, T) -> logits, loss; the head is the embedding's table, positions are learned."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(work.vocab, work.width), nn.Embedding(work.length, work.width)
        self.layers = nn.Sequential(*(Layer(work.width, work.heads) for _ in range(work.layers)))
        self.norm = nn.LayerNorm(work.width, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(ids) + self.places(torch.arange(ids.size(1), device=ids.device))
        logits = F.linear(self.norm(self.layers(x)), self.tokens.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def configure_optimizers(self, decay: float, rate: float, betas: tuple[float, float], device: str):
        groups = [
            {"params": [p for p in self.parameters() if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in self.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=device == "cuda")


def checkout_model(path: Path, work: Work) -> nn.Module:
    """The GPT of a checkout's model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    shape = {"n_layer": work.layers, "n_head": work.heads, "n_embd": work.width, "block_size": work.length}
    return module.GPT(module.GPTConfig(vocab_size=work.vocab, dropout=0.0, bias=False, **shape))


def nanogpt(work: Work, args: argparse.Namespace) -> dict:
    """Steps as in its train.py: one batch prefetched, autocast, compile, clipping, fused AdamW."""
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = (checkout_model(args.nanogpt, work) if args.nanogpt else GPT(work)).to(args.device)
    optimizer = model.configure_optimizers(1e-1, 6e-4, (0.9, 0.95), args.device)
    run = torch.compile(model) if args.compile else model
    bf16 = args.precision.startswith("bf16")
    cast = torch.autocast(args.device, torch.bfloat16) if bf16 else nullcontext()
    watch, following = Stopwatch(args), random_batch(work, args.device)
    while not watch.ended:
        ids, labels = following
        with cast:
            _, loss = run(ids, labels)
        following = random_batch(work, args.device)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.tick(work.batch)
    return peer_figures(work, watch, args)


def random_batch(work: Work, device: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels (B, T), pinned and copied without waiting, as its get_batch does."""
    ids = torch.randint(work.vocab, (work.batch, work.length + 1))
    if device == "cuda":
        ids = ids.pin_memory().to(device, non_blocking=True)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


# ---- Hugging Face --------------------------------------------------------------------------------------------------


class Examples(torch.utils.data.Dataset):
    """Random tokens in the keys a Hugging Face model wants; batches are collated and pinned by its Trainer."""

    def __init__(self, work: Work, number: int) -> None:
        self.work, self.number = work, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(self.work.vocab, (self.work.length,), generator=generator)
        labels = ids.clone()
        if self.work.task == "masked_lm":
            labels[torch.rand(self.work.length, generator=generator) > 0.15] = -100
        if self.work.targets:
            labels = labels[: self.work.targets]
        return {"input_ids": ids, "labels": labels}


def huggingface_model(work: Work) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config
    from transformers import T5ForConditionalGeneration as T5

    if work.task == "causal_lm":
        shape = {"n_embd": work.width, "n_layer": work.layers, "n_head": work.heads, "n_positions": work.length}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=work.vocab, attn_implementation="sdpa", **shape, **dropout))
    if work.task == "masked_lm":
        shape = {"hidden_size": work.width, "num_hidden_layers": work.layers, "num_attention_heads": work.heads}
        shape |= {"intermediate_size": 4 * work.width, "max_position_embeddings": work.length}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForMaskedLM(BertConfig(vocab_size=work.vocab, attn_implementation="sdpa", **shape, **dropout))
    shape = {"d_model": work.width, "d_ff": 4 * work.width, "num_layers": work.layers, "num_heads": work.heads}
    shape |= {"d_kv": work.width // work.heads, "decoder_start_token_id": 0}
    return T5(T5Config(vocab_size=work.vocab, dropout_rate=0.0, **shape))


def huggingface(work: Work, args: argparse.Namespace) -> dict:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    watch = Stopwatch(args)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            watch.tick(work.batch)

    steps = args.warmup + args.steps
    cuda = args.device == "cuda"
    arguments = TrainingArguments(
        str(args.folder / "run"), per_device_train_batch_size=work.batch, max_steps=steps, report_to="none",
        bf16=args.precision.startswith("bf16"), tf32=True if cuda else None, use_cpu=not cuda, disable_tqdm=True,
        save_strategy="no", optim="adamw_torch_fused" if cuda else "adamw_torch", logging_steps=steps,
        dataloader_num_workers=2 if cuda else 0,
    )  # fmt: skip
    data = Examples(work, work.batch * steps)
    Trainer(huggingface_model(work), arguments, train_dataset=data, callbacks=[Clock()]).train()
    return peer_figures(work, watch, args)


# ---- figures -------------------------------------------------------------------------------------------------------


def peer_figures(work: Work, watch: Stopwatch, args: argparse.Namespace) -> dict:
    return {**speed(work, watch, args), "model_flops": watch.examples / watch.seconds * flops_of_peer(work)}


def speed(work: Work, watch: Stopwatch, args: argparse.Namespace) -> dict:
    """Tokens are counted alike on all sides: those of the text in each example, without padding."""
    found = {"tokens_per_second": watch.examples * work.text / watch.seconds, "step": watch.seconds / watch.steps}
    if args.device == "cuda":
        found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["device"] = torch.cuda.get_device_name()
        found["peak"] = matrix_rate()
    return found


def matrix_rate(size: int = 8192, rounds: int = 20) -> float:
    """FLOP/s of a large bf16 matrix product, in the same process and heat as what was measured."""
    a = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        a @ a
    torch.cuda.synchronize()
    return 2 * size**3 * rounds / (time.perf_counter() - began)


SIDES = {"ours": ours, "nanogpt": nanogpt, "huggingface": huggingface}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options that the parents share with their children."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the same code on next to nothing, for a CPU")
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=15, help="steps before; they compile")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--profile", action="store_true", help="a trace of ours, by callbacks/profile.py")
    parser.add_argument("--syncs", action="store_true", help="name what waits for the GPU in a training step of ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--compile", action="store_true", help="nanoGPT's; ours has model.compile=true")
    parser.add_argument("--whole-head", action="store_true")
    parser.add_argument("--tf32", action="store_true")
    for name in ("--text", "--tokenizer", "--folder"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("words", nargs="*", help="overrides of ours")
    args = parser.parse_intermixed_args()
    if args.profile:  # the trace is written after step 15
        args.warmup = max(args.warmup, 20)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    work = work_of(args.work, args.tiny, args.batch)
    try:
        found = SIDES[args.side](work, args)
    except Exception as error:  # train() makes a UserError of it, and cuBLAS has a RuntimeError of its own
        if ran_out(error) is None:
            raise
        found = {"out_of_memory": True}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
