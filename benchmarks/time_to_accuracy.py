"""Training time until 0.90 validation accuracy on Emotion, from scratch: our emotion_bert against Hugging Face.

    python benchmarks/time_to_accuracy.py --path emotion
    python benchmarks/time_to_accuracy.py --path emotion --quick           # the best recipe only, one seed

Hugging Face: BertForSequenceClassification of the same shape (2 layers, 2 heads, d_model 128), Trainer, batches of 64
padded to their longest text, AdamW with a linear schedule, the best of three learning rates and two lengths of the
schedule, as ours was chosen: the first to reach the target, else the most accurate. Where it does not reach it,
its time to its best accuracy is a lower bound. Both sides read the same tokens of the same tokenizer.json.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import peers_huggingface as huggingface
import torch
from curves import Curve, Point, reached, shares, told, train_ours, validation
from measure import circumstances, publish, table

from lit_tfm.data.sampling import Key
from lit_tfm.tasks.base import Batch, Task

EPOCHS = 1.25  # of ours: enough for the target in every seed that was tried
RATES = (2e-4, 5e-4, 1e-3)
STEPS = (500, 1000)  # 2 and 4 epochs, at whose ends the learning rate is 0


class PeerRecipe(NamedTuple):
    lr: float
    steps: int

    def __str__(self) -> str:
        return f"{self.lr:g}, {self.steps} steps"


BEST = PeerRecipe(1e-3, 500)  # of these, see RESULTS.md


def accuracy_of(batches: Sequence[Batch]) -> Callable[[Callable], float]:
    """A function of `scores_of` (batch -> (B, L)): the share of the examples whose highest score is right."""

    @torch.no_grad()
    def measure(scores_of: Callable) -> float:
        right = sum(int((scores_of(b).argmax(1) == b["labels"]).sum()) for b in batches)
        return right / sum(len(b["labels"]) for b in batches)

    return measure


def theirs(model: torch.nn.Module) -> Callable[[Batch], torch.Tensor]:
    return lambda b: model(input_ids=b["input_ids"], attention_mask=b.get("attention_mask")).logits


class Contest:
    """Both sides on one data set."""

    def __init__(self, words: Sequence[str], every: int, target: float) -> None:
        self.words, self.every, self.target = list(words), every, target
        batches, self.data = validation(words)
        self.measure = accuracy_of(batches)
        dataset, collator = self.data.dataset("train"), self.data.collator
        rows = dataset.__getitems__([Key(0, index) for index in range(len(dataset))])
        # As [CLS] text [SEP], which is what our collator makes of them too.
        joined = [[*collator.start, *row["tokens"].tolist(), *collator.end] for row in rows]
        self.examples = [{"input_ids": ids, "label": row["label"]} for ids, row in zip(joined, rows, strict=True)]
        self.sizes: dict[str, int] = {}

    def peer(self, recipe: PeerRecipe, seed: int) -> Curve:
        facts = self.data.facts
        config = huggingface.bert(facts.tokenizer.vocab_size, 128, 2, 2, num_labels=len(facts.labels))
        model = huggingface.classifier(config, seed)
        self.sizes["Hugging Face"] = sum(p.numel() for p in model.parameters())
        with TemporaryDirectory() as folder:
            facts.tokenizer.save(file := Path(folder) / "tokenizer.json")
            collator = huggingface.padding(huggingface.tokenizer(file))
        settings = {"learning_rate": recipe.lr, "max_steps": recipe.steps, "seed": seed}
        settings |= {"per_device_train_batch_size": 64}
        enough = lambda value: value >= self.target  # noqa: E731
        return huggingface.train(
            model, self.examples, collator, lambda m: self.measure(theirs(m)), self.every, enough, **settings
        )

    def product(self, seed: int) -> Curve:
        typed = [f"trainer.max_epochs={EPOCHS}", *self.words, f"seed={seed}", "budget=null", "test=false"]
        curve, self.sizes["lit_tfm"] = train_ours(typed, self._ours, self.every)
        return curve

    def _ours(self, task: Task) -> float:
        return self.measure(task.scores)


def end(curve: Curve, target: float) -> Point:
    """Where the target is reached, else the best there is."""
    return reached(curve, target, rising=True) or max(curve, key=lambda p: p.value)


def order(curve: Curve, target: float) -> tuple[float, float]:
    """Smallest first: those that reach the target by time, then the others by accuracy."""
    point = end(curve, target)
    return (0.0, point.seconds) if point.value >= target else (1.0, -point.value)


def report(
    ours: list[Curve], theirs: list[Curve], trials: dict[PeerRecipe, Curve], best: PeerRecipe, target: float
) -> str:
    mine, other = ([end(curve, target) for curve in side] for side in (ours, theirs))
    rows = [
        [seed, *(cell for p in pair for cell in (f"{p.value:.4f}", p.step, f"{p.seconds:.1f}"))]
        for seed, pair in enumerate(zip(other, mine, strict=True), start=1)
    ]
    head = ["seed", f"Hugging Face ({best}): accuracy", "step", "seconds", "lit_tfm: accuracy", "step", "seconds"]
    lines = [table(head, rows), ""]
    if all(point.value >= target for point in mine):
        bound = "" if all(point.value >= target for point in other) else ", at most, as it did not get there"
        share = shares(mine, other)
        lines.append(f"Time of lit_tfm over that of Hugging Face{bound}: {share}; the goal is 0.333.")
    points = {recipe: end(curve, target) for recipe, curve in trials.items()}
    tried = "; ".join(f"{recipe}: {p.value:.4f} after {p.seconds:.0f} s" for recipe, p in points.items())
    return "\n".join([*lines, *([f"Hugging Face by learning rate and length, seed 1: {tried}."] if trials else [])])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="emotion", help="folder with train and validation files")
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--quick", action="store_true", help="one seed, and Hugging Face's best recipe only")
    parser.add_argument("--target", type=float, default=0.90, help="validation accuracy")
    parser.add_argument("--peer-steps", type=int, nargs="+", default=STEPS, help="lengths of its schedule")
    parser.add_argument("--every", type=int, default=25, help="steps between two measurements")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("words", nargs="*", help="further settings of our run, to try a recipe")
    args = parser.parse_args(arguments)
    words = ["experiment=emotion_bert", f"data.path={args.path}", *args.words]
    contest = Contest(words, args.every, args.target)
    recipes = [PeerRecipe(lr, steps) for lr in ((BEST.lr,) if args.quick else RATES) for steps in args.peer_steps]
    recipes = recipes[:1] if args.quick else recipes
    firsts = {recipe: told(f"Hugging Face, {recipe}", 1, contest.peer(recipe, seed=1)) for recipe in recipes}
    best = min(firsts, key=lambda recipe: order(firsts[recipe], args.target))
    theirs, ours = [firsts[best]], [told("lit_tfm", 1, contest.product(1))]
    for seed in range(2, 1 + (1 if args.quick else args.rounds)):
        ours.append(told("lit_tfm", seed, contest.product(seed)))
        theirs.append(told(f"Hugging Face, {best}", seed, contest.peer(best, seed)))
    section = report(ours, theirs, {} if args.quick else firsts, best, args.target)
    sizes = ", ".join(f"{name} {size:,}" for name, size in contest.sizes.items())
    heading = circumstances("transformers", "accelerate")
    publish("time_to_accuracy", f"{heading}\n\n{section}\nParameters: {sizes}.", args.dry)


if __name__ == "__main__":
    main()
