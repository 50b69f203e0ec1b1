"""Use a run on texts: `python -m lit_tfm.predict outputs/emotion_bert/... "i feel fine"`.

A classifier says labels with probabilities, a masked language model fills masks. A file is worked through in chunks,
and a killed command typed again goes on where it stopped. The heavy imports stand inside functions, so that `--help`
answers at once.
"""

import argparse
import sys
from pathlib import Path

from lit_tfm import targets
from lit_tfm.command_line import run_verb
from lit_tfm.errors import UserError
from lit_tfm.runs import RunFolder

EPILOG = """\
  predict RUN "i feel fine" "what a day"            labels, likeliest first
  predict RUN "the [MASK] sat on the mat" --top 5   words for each mask
  predict RUN --file in.csv --column review --output out.csv
  cat texts.txt | predict RUN --output out.jsonl

A file is csv, tsv, jsonl, parquet or text with a line each; the output has its
columns and those of the predictions. A run that reads pairs of texts takes
them two by two, from --column and --column-b, or parted by a tab.
"""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lit_tfm.predict",
        description="Labels with probabilities, or words for masks, from a trained run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, e.g. outputs/emotion_bert/2026-11-22_01-05-54")
    add("texts", nargs="*", metavar="TEXT", help="what to predict for; without any: --file, or stdin")
    add("--file", metavar="PATH", help="csv, tsv, jsonl, parquet, or a text a line; - is stdin")
    add("--output", metavar="PATH", help="a .csv or .jsonl file (default: csv to stdout)")
    add("--column", action="append", default=[], metavar="NAME", help="of the text; several are joined")
    add("--column-b", action="append", default=[], metavar="NAME", help="of the second text, for runs that read pairs")
    add("--errors", choices=("strict", "replace"), default="strict", help="what is not UTF-8: refused, or replaced")
    add("--top", type=int, metavar="K", help="answers each (default: 3 labels in the terminal, 1 in files; 5 words)")
    add("--checkpoint", metavar="best|last|PATH", help="default: best")
    add("--overwrite", action="store_true", help="replace an output that is there")
    return parser.parse_intermixed_args(targets.take(argv))


def predict(argv: list[str] | None = None) -> None:
    given = arguments(argv)
    run = RunFolder.open(given.run)  # what needs nothing heavy is told before anything heavy is imported
    check(given)

    from lit_tfm.prediction import work
    from lit_tfm.session import hush

    hush()
    work.check_task(run)
    if given.texts:
        work.texts(given)
    else:
        work.table(given)


def check(given: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    if given.top is not None and given.top < 1:
        raise UserError(f"--top {given.top}: 1 or more")
    if given.texts and given.file:
        raise UserError("texts and --file: give one of them")
    if given.texts and given.output:
        raise UserError("--output is for --file or stdin; texts of the command line are answered in the terminal")
    if given.output and Path(given.output).suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"--output {given.output}: name it .csv or .jsonl")
    if not given.texts and not given.file and sys.stdin.isatty():
        raise UserError("nothing to predict for; type predict RUN 'a text', or --file PATH, or pipe texts in")


def main() -> None:
    sys.exit(run_verb(predict))


if __name__ == "__main__":
    main()
