"""What each part of a recipe brings: the loss after equal steps as shipped, and with one thing put back or changed.

    python benchmarks/ablations.py characters --path tinyshakespeare/input.txt
    python benchmarks/ablations.py masked_words --path wikitext-2

Loss against steps: it does not depend on what else the machine does. Where a change also changes what a step costs, the
row says so in tokens: equal tokens are about equal time.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import time_to_loss_char
import time_to_loss_mlm
from curves import train_ours, validation
from measure import circumstances, publish, table

from lit_tfm.tasks.base import Task


class Recipe(NamedTuple):
    words: list[str]  # of the run
    judge: list[str]  # of the run that validation batches are taken from, beside those
    loss_of: Callable
    logits: Callable  # task -> what loss_of's function takes
    steps: int
    changes: Mapping[str, list[str]]


RECIPES = {
    "characters": Recipe(
        ["experiment=char_gpt"],
        [],
        time_to_loss_char.loss_of,
        time_to_loss_char.ours,
        time_to_loss_char.STEPS,
        {
            "without neighbours": ["model.neighbours=0"],
            "without value embeddings": ["model.value_embeddings=false"],
            "AdamW for all, 3e-3": ["optimizer=adamw", "~optimizer.adamw_lr", "optimizer.lr=0.003"],
            "embeddings and head at 3e-3": ["optimizer.adamw_lr=0.003"],
            "heads and neighbours orthogonalised together": ["optimizer.split_fused=false"],
            "without QK-norm": ["model.qk_norm=false"],
            "GELU": ["model.activation=gelu"],
            "nothing started at zero": ["model.zero_init=false"],
            "logits not capped": ["model.softcap=null"],
            "embeddings not normed": ["model.embedding_norm=false"],
            "half a cosine": ["schedule=cosine"],
            "cool-down over 40 %": ["schedule.cooldown=0.4"],
        },
    ),
    "masked_words": Recipe(
        ["experiment=bert_mini"],
        time_to_loss_mlm.BERT,
        time_to_loss_mlm.loss_of,
        time_to_loss_mlm.ours,
        40,
        {
            "without neighbours": ["model.neighbours=0"],
            "two neighbours on each side": ["model.neighbours=2"],
            "heads and neighbours orthogonalised together": ["optimizer.split_fused=false"],
            "without QK-norm": ["model.qk_norm=false"],
            "batches twice as large, half the steps": ["data.batch_size=32"],
            "AdamW for all, 1e-3": ["optimizer=adamw", "optimizer.lr=0.001"],
            "30 % masked": ["task.rate=0.3"],
            "a table of its own for the head": ["model.tie_embeddings=false"],
        },
    ),
}


def losses(recipe: Recipe, further: list[str], change: list[str], steps: int, seeds: Sequence[int]) -> list[float]:
    """The validation loss after `steps`, one a seed."""
    batches, _ = validation([*recipe.words, *recipe.judge, *further])
    measure = recipe.loss_of(batches)

    def end(task: Task) -> float:
        return measure(recipe.logits(task))

    found = []
    for seed in seeds:
        words = [*recipe.words, *further, *change, f"seed={seed}", "budget=null", f"trainer.max_steps={steps}"]
        curve, _ = train_ours(words, end, every=steps)
        found.append(curve[-1].value)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=list(RECIPES))
    parser.add_argument("--path", required=True, help="the text, or its folder")
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--steps", type=int, help="of a run")
    parser.add_argument("--only", nargs="*", help="beginnings of the names of the changes to try")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("words", nargs="*", help="further settings of every run")
    args = parser.parse_intermixed_args(arguments)  # settings may stand on both sides of the options
    recipe = RECIPES[args.recipe]
    steps, seeds, further = args.steps or recipe.steps, range(1, args.rounds + 1), [f"data.path={args.path}"]
    rows, base = [], None
    for name, change in {"as shipped": [], **recipe.changes}.items():
        if change and args.only is not None and not name.startswith(tuple(args.only)):
            continue
        half = 2 if "half the steps" in name else 1
        found = losses(recipe, [*further, *args.words], change, steps // half, seeds)
        base = statistics.mean(found) if base is None else base
        spread = ", ".join(f"{loss:.4f}" for loss in found)
        rows.append([name, f"{statistics.mean(found):.4f}", f"{statistics.mean(found) - base:+.4f}", spread])
        print(*rows[-1], sep=" | ", flush=True)
    section = table(["recipe", "loss, mean", "change", "by seed"], rows)
    publish(f"ablations_{args.recipe}", f"{circumstances()}\n{steps} steps.\n\n{section}", args.dry)


if __name__ == "__main__":
    main()
