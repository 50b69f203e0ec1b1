"""Runs side by side: `python -m lit_tfm.compare outputs`.

Reads run folders and nothing else; needs no torch. `lit_tfm.reports` holds the parts, for notebooks too.
"""

import argparse
import sys

from lit_tfm.command_line import run_verb

DESCRIPTION = """\
Compare runs: the settings that differ, best and last metrics, what they cost.
Finished runs that differ only in their seed become one row, mean ± standard
deviation."""
EXAMPLES = """\
examples:
  python -m lit_tfm.compare                     all runs in outputs, sweeps' too
  python -m lit_tfm.compare outputs/emotion_* --sort best/val/loss
  python -m lit_tfm.compare --where "val/loss < 4 and optimizer == adamw"
  python -m lit_tfm.compare outputs/a outputs/b --baseline outputs/a
  python -m lit_tfm.compare --html report.html

where: names compared with values (< <= > >= == != in [..]), joined by and, or,
not and ( ). Names are run, status, steps, tokens, seconds, parameters, flops,
tokens_per_second; settings (optimizer.lr, or lr where that is clear; optimizer
is the yaml chosen); metrics (val/loss: the last value, best/val/loss: that of
the best validation).
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m lit_tfm.compare",
        usage="%(prog)s [RUN_OR_GLOB ...] [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add(
        "runs",
        nargs="*",
        metavar="RUN_OR_GLOB",
        default=["outputs"],
        help="run folders, globs, folders with runs inside (default: outputs)",
    )
    add("--baseline", metavar="RUN", help="differences from this run, over evaluation examples")
    add("--evaluation", metavar="NAME", help="the evaluation that --baseline compares (default: one that all have)")
    add("--sort", metavar="NAME", help="column to sort by, the best first (default: what the runs were monitored by)")
    add("--reverse", action="store_true", help="the other way round")
    add("--where", metavar="EXPRESSION", help='only these runs, e.g. "val/loss<4"')
    add("--metrics", nargs="+", metavar="NAME", help="metrics to show: names, globs ('val/*'), all")
    add("--columns", nargs="+", metavar="NAME", help="show these columns and no others")
    add("--best", action="store_true", help="of each metric only the best validation's value")
    add("--last", action="store_true", help="of each metric only the last value")
    add("--each-seed", action="store_true", help="a row for every run: seeds are not folded")
    add("--format", choices=["table", "markdown", "csv", "json"], default="table")
    add("--html", metavar="FILE", help="write one self-contained page with curves, cost against quality, and the table")
    return made


def compare(arguments: argparse.Namespace) -> None:
    from lit_tfm.console import Console
    from lit_tfm.reports import columns, report, screen, tables, texts
    from lit_tfm.runs import command
    from lit_tfm.terminal import out

    which = columns.check_which(arguments.best, arguments.last)
    result = tables.compare(
        arguments.runs,
        where=arguments.where,
        sort=arguments.sort,
        reverse=arguments.reverse,
        fold=not arguments.each_seed,
        best=arguments.best,
    )
    found = columns.columns(result, arguments.metrics, arguments.columns, which)
    differences = None
    if arguments.baseline:
        from lit_tfm.reports.paired import against  # numpy, which nothing else here needs

        differences = against(result, arguments.baseline, arguments.evaluation)
    notes = [*result.notes, *(differences.notes if differences else [])]
    if arguments.format == "table":
        notes = screen.show_all(Console(), result, found, differences) + notes
    elif arguments.format == "markdown":
        out(texts.markdown(found))
        if differences and differences.rows:
            out(f"\n{differences.title()}:\n\n{texts.markdown(differences.columns())}")
    else:
        wanted = [column.key for column in found] if arguments.columns or arguments.metrics else None
        records = texts.chosen(tables.records(result), wanted)
        differing = differences.records() if differences else {}
        write = texts.as_csv if arguments.format == "csv" else texts.as_json
        out(write([{**record, **differing.get(record["run"], {})} for record in records]))
    if arguments.html:
        names = [name for name in (arguments.metrics or []) if name in result.metrics]
        path = report.write(arguments.html, result, found, differences, names, command())
        notes.append(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB; needs no network)")
    screen.tell(Console(stderr=arguments.format != "table"), notes)


def main() -> None:
    sys.exit(run_verb(lambda: compare(parser().parse_args())))


if __name__ == "__main__":
    main()
