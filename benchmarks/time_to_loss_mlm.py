"""Training time until run_mlm's loss: WikiText-2, `experiment=bert_mini` against Hugging Face's Trainer.

    python benchmarks/time_to_loss_mlm.py --path wikitext-2
    python benchmarks/time_to_loss_mlm.py --path wikitext-2 --quick        # the best learning rate only, one seed

The target is the loss that run_mlm's recipe (BertForMaskedLM, AdamW, linear schedule, 15 % masks) has after 400 steps
of 32 blocks of 128 tokens, with the best of three learning rates. Both sides have 4 layers, 4 heads, d_model 256, the
same tokens of the same tokenizer.json, and are measured on the same masks of the same validation blocks: 15 % of the
tokens, of which 80 % are hidden, 10 % replaced and 10 % left, as in BERT and run_mlm.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import peers_huggingface as huggingface
import torch
import torch.nn.functional as F
from curves import Curve, mean, reached, shares, told, train_ours, validation
from measure import circumstances, publish, table
from pictures import falling

from lit_tfm.data.module import TextData
from lit_tfm.tasks.base import Batch, Task

BERT = ["task.rate=0.15", "task.replace=[0.8,0.1,0.1]"]
STEPS = 14  # of ours: enough for the target in every seed that was tried
RATES = (2e-4, 5e-4, 1e-3)
BEST = 5e-4  # of these, see RESULTS.md


def loss_of(batches: Sequence[Batch]) -> Callable[[Callable], float]:
    """A function of `logits_of` (batch -> logits (M, V) of the masked tokens): the mean loss over all of them."""
    labels = [batch["labels"].flatten()[batch["targets_at"]] for batch in batches]

    @torch.no_grad()
    def measure(logits_of: Callable) -> float:
        losses = [F.cross_entropy(logits_of(b), true, reduction="sum") for b, true in zip(batches, labels, strict=True)]
        return mean(zip(losses, [len(true) for true in labels], strict=True))

    return measure


def ours(task: Task) -> Callable[[Batch], torch.Tensor]:
    return lambda b: task.head(task.model.hidden(**task.model_inputs(b)).flatten(0, 1)[b["targets_at"]])


def theirs(model: torch.nn.Module) -> Callable[[Batch], torch.Tensor]:
    return lambda b: model(input_ids=b["input_ids"]).logits.flatten(0, 1)[b["targets_at"]]


def blocks(data: TextData, length: int) -> list[dict]:
    """The training stream cut as run_mlm's group_texts cuts it; the remainder is dropped."""
    tokens, tokenizer = np.asarray(data.stores["train"].tokens), data.facts.tokenizer
    rows = tokens[: len(tokens) // length * length].reshape(-1, length)
    special = np.isin(rows, [tokenizer.sep_id])
    return [
        {"input_ids": row, "special_tokens_mask": mask}
        for row, mask in zip(rows.tolist(), special.astype(int).tolist(), strict=True)
    ]


class Contest:
    """Both sides on one text."""

    def __init__(self, words: Sequence[str], steps: int, peer_steps: int, every: int) -> None:
        self.words, self.steps, self.peer_steps, self.every = list(words), steps, peer_steps, every
        batches, self.data = validation([*words, *BERT])
        self.measure = loss_of(batches)
        self.examples = blocks(self.data, self.data.block_size)
        self.sizes: dict[str, int] = {}

    def peer(self, lr: float, seed: int) -> Curve:
        config = huggingface.bert(self.data.facts.tokenizer.vocab_size, d_model=256, n_layers=4, n_heads=4)
        model = huggingface.masked_lm(config, seed)
        self.sizes["Hugging Face"] = sum(p.numel() for p in model.parameters())
        with TemporaryDirectory() as folder:
            self.data.facts.tokenizer.save(file := Path(folder) / "tokenizer.json")
            collator = huggingface.masking(huggingface.tokenizer(file))
        settings = {"learning_rate": lr, "max_steps": self.peer_steps, "seed": seed, "per_device_train_batch_size": 32}
        look = max(1, self.peer_steps // 5)
        return huggingface.train(
            model, self.examples, collator, lambda m: self.measure(theirs(m)), every=look, **settings
        )

    def product(self, seed: int) -> Curve:
        typed = [*self.words, f"seed={seed}", "budget=null", f"trainer.max_steps={self.steps}"]
        curve, self.sizes["lit_tfm"] = train_ours(typed, lambda task: self.measure(ours(task)), self.every)
        return curve


def report(ours: list[Curve], theirs: dict[float, Curve]) -> tuple[str, float]:
    """The table, and the target."""
    target = min(curve[-1].value for curve in theirs.values())
    rows, found = [], []
    for seed, (mine, (lr, other)) in enumerate(zip(ours, theirs.items(), strict=True), start=1):
        point, end = reached(mine, target), other[-1]
        found.append(point)
        shown = point or min(mine, key=lambda p: p.value)  # where the target is missed, what was reached
        row = [f"{end.value:.4f}", f"{end.seconds:.0f}", f"{shown.value:.4f}", shown.step, f"{shown.seconds:.1f}"]
        rows.append([seed, f"{lr:g}", *row])
    head = ["seed", "Hugging Face: learning rate", "loss", "seconds", "lit_tfm: loss", "step", "seconds"]
    lines = [table(head, rows), ""]
    if all(found):
        share = shares(found, [curve[-1] for curve in theirs.values()])
        lines.append(
            f"Target {target:.4f}, the best of these. Time of lit_tfm over that of Hugging Face: {share}; the goal is "
            "0.167."
        )
    return "\n".join(lines), target


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="wikitext-2", help="folder with train, valid and test files")
    parser.add_argument("--quick", action="store_true", help="Hugging Face's best learning rate only, one seed")
    parser.add_argument("--steps", type=int, default=STEPS, help="of ours")
    parser.add_argument("--peer-steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=2, help="steps between two measurements of ours")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("words", nargs="*", help="further settings of our run, to try a recipe")
    args = parser.parse_args(arguments)
    words = ["experiment=bert_mini", f"data.path={args.path}", *args.words]
    contest = Contest(words, args.steps, args.peer_steps, args.every)
    theirs, ours = {}, []
    # What a step of Hugging Face costs does not depend on its learning rate: each is a repetition.
    for seed, lr in enumerate((BEST,) if args.quick else RATES, start=1):
        theirs[lr] = told(f"Hugging Face, {lr:g}", seed, contest.peer(lr, seed))
        ours.append(told("lit_tfm", seed, contest.product(seed)))
    section, target = report(ours, theirs)
    sizes = ", ".join(f"{name} {size:,}" for name, size in contest.sizes.items())
    heading = circumstances("transformers", "accelerate")
    publish("time_to_loss_mlm", f"{heading}\n\n{section}\nParameters: {sizes}.", args.dry)
    if not args.dry:
        curves = {"Hugging Face Trainer": list(theirs.values()), "lit_tfm": ours}
        falling("speed_mlm", curves, target, "masked LM, WikiText-2, CPU", "validation loss, 15 % masks")


if __name__ == "__main__":
    main()
