"""Training time until nanoGPT's loss: tinyshakespeare by characters, our char_gpt against nanoGPT's CPU recipe.

    python benchmarks/time_to_loss_char.py --path tinyshakespeare/input.txt
    python benchmarks/time_to_loss_char.py --path ... --nanogpt ~/nanoGPT     # the real train.py as well

The target is the loss nanoGPT ends with (2000 steps of 12 windows of 64 characters). Both sides read the same ids and
are measured on the whole validation split, in blocks of 64.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import peers_nanogpt
import torch
import torch.nn.functional as F
from curves import Curve, mean, reached, shares, told, train_ours, validation
from measure import circumstances, publish, table
from peers_nanogpt import Recipe
from pictures import falling

from lit_tfm.tasks.base import Batch, Task

STEPS = 170  # of ours: enough for the target in every seed that was tried


def loss_of(batches: Sequence[Batch]) -> Callable[[Callable], float]:
    """A function of `logits_of` (ids (B, T) -> logits (B, T, V)): the mean loss over all characters of the batches."""

    @torch.no_grad()
    def measure(logits_of: Callable) -> float:
        losses = [
            F.cross_entropy(logits_of(b["input_ids"]).flatten(0, 1), b["labels"].flatten(), reduction="sum")
            for b in batches
        ]
        return mean(zip(losses, [(b["labels"] != -100).sum() for b in batches], strict=True))

    return measure


def ours(task: Task) -> Callable:
    return lambda ids: task.head(task.model.hidden(ids))


def compare(words: Sequence[str], recipe: Recipe, steps: int, rounds: int, every: int, nanogpt: Path | None) -> dict:
    """The curves of every round by contestant, and the parameters of each."""
    batches, data = validation(words)
    measure = loss_of(batches)
    tokens, vocab_size = data.stores["train"].tokens, data.facts.tokenizer.vocab_size

    def peer(seed: int) -> tuple[Curve, int]:
        return peers_nanogpt.train(recipe, tokens, vocab_size, measure, every=40 * every, seed=seed)

    def checkout(seed: int) -> tuple[Curve, int]:
        with tempfile.TemporaryDirectory() as folder:
            return peers_nanogpt.train_checkout(nanogpt, Path(folder), recipe, tokens, vocab_size, measure, seed)

    def product(seed: int) -> tuple[Curve, int]:
        typed = [*words, f"seed={seed}", "budget=null", f"trainer.max_steps={steps}"]
        return train_ours(typed, lambda task: measure(ours(task)), every)

    contestants = {"lit_tfm": product, "nanoGPT's settings": peer} | ({"nanoGPT": checkout} if nanogpt else {})
    runs: dict[str, list[tuple[Curve, int]]] = {name: [] for name in contestants}
    for seed in range(1, rounds + 1):  # taking turns, every other round in the opposite order
        for name in list(contestants)[:: 1 if seed % 2 else -1]:
            curve, size = contestants[name](seed)
            runs[name].append((told(name, seed, curve), size))
    return runs


def report(runs: dict[str, list[tuple[Curve, int]]]) -> tuple[str, float]:
    """The table, and the target."""
    peers = [name for name in runs if name != "lit_tfm"]
    target = min(sum(curve[-1].value for curve, _ in runs[name]) / len(runs[name]) for name in peers)
    head = ["seed", *(f"{name}: loss | seconds" for name in peers), "lit_tfm: loss | step | seconds | ms a step"]
    rows, found = [], []
    for seed, (curve, _) in enumerate(runs["lit_tfm"]):
        point = reached(curve, target)
        found.append(point)
        ends = [runs[name][seed][0][-1] for name in peers]
        best = point or min(curve, key=lambda p: p.value)  # where the target is missed, what was reached
        mine = f"{best.value:.4f} | {best.step} | {best.seconds:.1f} | {1000 * best.seconds / best.step:.1f}"
        rows.append([seed + 1, *(f"{end.value:.4f} | {end.seconds:.1f}" for end in ends), mine])
    lines = [table([cell for part in head for cell in part.split(" | ")], rows)]
    if all(found):
        for name in peers:
            share = shares(found, [curve[-1] for curve, _ in runs[name]])
            lines.append(f"Target {target:.4f}. Time of lit_tfm over that of {name}: {share}; the goal is 0.2.")
    sizes = ", ".join(f"{name} {runs[name][0][1]:,}" for name in runs)
    return "\n".join([lines[0], "", *lines[1:], f"Parameters: {sizes}."]), target


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="tinyshakespeare/input.txt", help="the text")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT: its own train.py runs as well")
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--steps", type=int, default=STEPS, help="of ours")
    parser.add_argument("--peer-steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=5, help="steps between two measurements of ours")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("words", nargs="*", help="further settings of our run, to try a recipe")
    args = parser.parse_args(arguments)
    words = ["experiment=char_gpt", f"data.path={args.path}", *args.words]
    recipe = Recipe(max_iters=args.peer_steps)
    runs = compare(words, recipe, args.steps, 1 if args.quick else args.rounds, args.every, args.nanogpt)
    section, target = report(runs)
    publish("time_to_loss_char", f"{circumstances()}\n\n{section}", args.dry)
    if not args.dry:
        curves = {name: [curve for curve, _ in runs[name]] for name in ("nanoGPT's settings", "lit_tfm")}
        falling("speed_char", curves, target, "tinyshakespeare, 0.8 M parameters, CPU", "validation loss")


if __name__ == "__main__":
    main()
