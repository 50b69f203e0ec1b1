"""Search for a better run: `python -m lit_tfm.sweep sweep=bert_small`.

The same command goes on with a sweep that was stopped, in whatever way; on another machine, with the same
`storage=postgresql://...`, it works on the same one. `run_sweep` is the door for notebooks and tests.
"""

import argparse
import sys

EXAMPLES = """examples:
  python -m lit_tfm.sweep sweep=bert_small                            search; once more: go on
  python -m lit_tfm.sweep sweep=bert_small workers=4 n_trials=100     n_trials is the total
  python -m lit_tfm.sweep sweep=bert_small data.path=DIR seed=2       any key of a run is fixed for all trials
  python -m lit_tfm.sweep sweep=bert_small storage=postgresql://USER@HOST/DATABASE      on as many machines as you like
  python -m lit_tfm.sweep sweep=bert_small --status                   how it stands, from any terminal

Ctrl-C once: running trials write their checkpoints, and the same command goes on with them. Twice: at once.
"""


def main() -> None:
    from lit_tfm.command_line import run_verb

    given = parse(sys.argv[1:])
    status = 0

    def verb() -> None:
        nonlocal status
        status = show_status(given) if given.status else sweep(given)

    sys.exit(run_verb(verb) or status)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "lit_tfm.sweep", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="sweep=NAME or sweep=PATH.yaml, and what is to differ"
    )
    parser.add_argument("--status", action="store_true", help="print how the sweep stands and do nothing")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of yours with config groups")
    return parser.parse_intermixed_args(arguments)


def sweep(given: argparse.Namespace) -> int:
    """Run or go on with the sweep; its exit status."""
    from lit_tfm.search.supervisor import run_sweep, warm_up

    warm_up()  # imports in another process, while this one reads the sweep
    from lit_tfm.search.settings import load

    return run_sweep(load(given.words, given.config_dir)).exit_status


def show_status(given: argparse.Namespace) -> int:
    """Print the table of a running or ended sweep."""
    from lit_tfm.console import Console
    from lit_tfm.search.looking import look
    from lit_tfm.search.status import table

    Console().print(table(*look(given.words)))
    return 0


if __name__ == "__main__":
    main()
