"""Measure a run on a split: `python -m lit_tfm.evaluate outputs/bert_small/...`.

Everything is rebuilt from the run folder: config, tokenizer, weights. The heavy imports stand inside functions, so that
`--help` answers at once.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from lit_tfm import targets
from lit_tfm.command_line import run_verb
from lit_tfm.errors import UserError
from lit_tfm.runs import RunFolder

EPILOG = """\
overrides: key=value of data, trainer, seed and cache_dir, e.g.
  data.path=new.csv          other files, read as the run's own were
  data.test_limit=500        a part of the split
  trainer.accelerator=cpu    where to compute

The figures stand in RUN/evaluation/<name>.json, and by example in
RUN/evaluation/<name>.examples.csv; <name> is the split, with the data set and
the checkpoint where they are not the run's own and its best.
"""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lit_tfm.evaluate",
        description="Measure a trained run: all metrics of its task with bootstrap intervals, and where it is wrong.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, e.g. outputs/bert_small/2026-11-22_01-05-54")
    add("overrides", nargs="*", metavar="key=value", help="see below")
    add("--split", help="train, validation or test; default: test where there is one, else validation")
    add("--data", metavar="NAME", help="another data set: a yaml of conf/data, e.g. ag_news")
    add("--config-dir", metavar="DIR", help="a folder of yamls of your own, as for train")
    add("--checkpoint", metavar="best|last|PATH", help="default: best")
    add("--stride", type=int, metavar="N", help="causal models: new tokens a window (default: half the context)")
    add("--context", type=int, metavar="N", help="causal models: tokens of a window (default: the block of training)")
    add("--one-by-one", action="store_true", help="masked models: hide every token once, alone; takes much longer")
    add("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default 1000; 0: no intervals)")
    add("--mistakes", type=int, default=20, metavar="N", help="classifiers: most confident mistakes to store")
    add("--name", help="of the files in RUN/evaluation")
    return parser.parse_intermixed_args(targets.take(argv))


def name_of(given: argparse.Namespace, split: str, own: bool, checkpoint: str) -> str:
    """test, ag_news-test, test-last: what tells one evaluation of a run from another."""
    if given.name is not None:
        if not re.fullmatch(r"[\w][\w.+-]*", given.name):
            raise UserError(f"--name {given.name}: letters, digits and . _ + - only; e.g. --name test-stride1")
        return given.name
    path = next((word.partition("=")[2] for word in given.overrides if word.startswith("data.path=")), "")
    other = given.data or re.sub(r"[^\w.+-]+", "_", Path(path).stem).strip("._") or "other"
    parts = [] if own else [other]
    parts += [split] if own or split != "all" else []
    return "-".join(parts + ([] if checkpoint == "best" else [re.sub(r"[^\w.+-]+", "_", checkpoint)]))


def in_training(run: RunFolder, split: str, checkpoint: str) -> dict[str, float]:
    """What training measured of this split with these weights, by the metric's plain name."""
    try:
        summary = run.read_json("summary.json")
    except (OSError, ValueError, UserError):
        return {}
    kept = {"best": summary.get("best"), "last": summary.get("metrics")}.get(checkpoint) or {}
    stage = {"validation": "val/", "test": "test/"}.get(split, "none/")
    if stage == "test/":  # measured once, with the best checkpoint
        kept = summary.get("metrics") or {} if checkpoint == "best" else {}
    return {name.removeprefix(stage): value for name, value in kept.items() if name.startswith(stage)}


def evaluate(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, store; the stored content."""
    given = arguments(argv)
    if given.resamples < 0 or given.mistakes < 0:
        raise UserError("--resamples and --mistakes are not negative")
    RunFolder.open(given.run).keep_inside()  # what is wrong with a folder is told before anything heavy is imported

    from lit_tfm.console import Console
    from lit_tfm.evaluation import screen
    from lit_tfm.evaluation.report import Options
    from lit_tfm.evaluation.report import evaluate as measure
    from lit_tfm.evaluation.splits import open_split
    from lit_tfm.evaluation.subject import open_subject
    from lit_tfm.session import hush

    hush()
    subject = open_subject(given.run, given.checkpoint, tuple(given.overrides))
    split = open_split(subject, given.split, given.data, given.config_dir)
    options = Options(given.stride, given.context, given.one_by_one, given.resamples, mistakes=given.mistakes)
    with screen.progress() as progress:
        report = measure(subject, split, options, progress)
    checkpoint = subject.weights.stem
    inside = subject.weights.parent.resolve() == (subject.run / "checkpoints").resolve()
    checkpoint = checkpoint if inside else f"{subject.weights.parent.name}-{checkpoint}"
    whole = split.own and split.data.limits[split.inner] is None
    trained = in_training(subject.run, split.name, checkpoint if whole and inside else "")
    console = Console()
    screen.show(console, report.content, trained, subject.task.headline)
    path = report.write(subject.run / "evaluation", name_of(given, split.name, split.own, checkpoint))
    console.print(f"\nstored  {screen.visible(str(path))}", soft_wrap=True, highlight=False)
    return report.content


def main() -> None:
    sys.exit(run_verb(evaluate))


if __name__ == "__main__":
    main()
