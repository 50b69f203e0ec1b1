"""Train a run again from its stored config: `python -m lit_tfm.rerun outputs/bert_small/...`.

On the same machine and versions, on a CPU and with `deterministic=true`, the metrics are equal to the last digit; what
is not the same any more is told before it starts.
"""

import argparse
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_tfm import targets
from lit_tfm.command_line import run_verb
from lit_tfm.errors import UserError, nearest
from lit_tfm.runs import Result, RunFolder

EPILOG = """\
overrides: key=value on top of the stored config, e.g.
  seed=2  trainer.max_steps=500  data.path=MOVED/train.txt  output_dir=NEW
What a yaml chose (model=..., data=...) is settled by the run; for others, train.

Numbers are the same where the machine, the versions, the data and the code are,
and the run was bounded by steps. deterministic=true promises it; on a CPU runs
usually repeat without it too. --config-dir is not needed: the config is whole.
"""
PATHS = ("data.path", "tokenizer.path", "init_from")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lit_tfm.rerun",
        description="Train again from a run's stored config, into a new folder, and compare the numbers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("overrides", nargs="*", metavar="key=value", help="see below")
    add("--changed-data", action="store_true", help="train although the data is not what the run was trained on")
    add("--check", action="store_true", help="exit status 1 where a number differs")
    return parser.parse_intermixed_args(targets.take(argv))


def rerun(argv: list[str] | None = None) -> bool:
    """Train, compare, print; whether all numbers were identical.

    Raises UserError for a folder that is no run, an override it can't take, and data that is gone or has changed.
    """
    given = arguments(argv)
    run = RunFolder.open(given.run)
    cfg, typed = stored(run, given.overrides)
    from lit_tfm import hardware, runs
    from lit_tfm.console import Console
    from lit_tfm.session import Session

    console = Console()
    then, now = read(run, "environment.json"), runs.environment(hardware.choose(cfg.trainer).name)
    tell(console, run, cfg, then, now)
    check_data(console, run, cfg, typed, given.changed_data)
    result = Session(cfg).run()
    if result.folder is None:  # dry_run=true
        return True
    return compare(console, run, result, typed)


# ---- the config ----------------------------------------------------------------------------------------------------


def stored(run: RunFolder, overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """The run's config under what was typed, and the keys typed. Paths that are not here are looked for where the run
    was started."""
    from lit_tfm.config import check_keys, check_values, resolve
    from lit_tfm.evaluation import places
    from lit_tfm.reports.repetition import found_elsewhere
    from lit_tfm.trained import config_of

    cfg = config_of(run)
    values = parse(overrides)
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    resolve(cfg)
    check_keys(cfg)
    check_values(cfg)
    for key in PATHS:
        path = places.plain(OmegaConf.select(cfg, key))
        if path is None or key in values:
            continue
        found = places.plain(OmegaConf.select(places.find(cfg, run, key), key))
        if found_elsewhere(path, found):  # otherwise it stays as it is: the new run is described as the old one
            OmegaConf.update(cfg, key, found, merge=False)
    return cfg, list(values)


def parse(overrides: list[str]) -> dict[str, Any]:
    """`seed=2` -> {"seed": 2}. Raises UserError for what can't be laid over a stored config."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from lit_tfm.config import at_home, groups

    values = {}
    for given in overrides:
        if given.startswith("-"):
            raise UserError(
                f"{given}: no such option{nearest(given, ['--changed-data', '--check'])}; --help lists them"
            )
        try:
            override = OverridesParser.create().parse_override(at_home(given))
        except HydraException as error:
            raise UserError(f"{given!r} is no override; type key=value, e.g. seed=2") from error
        key = override.key_or_group
        if key in groups() or override.is_delete() or "@" in given.partition("=")[0]:
            raise UserError(
                f"{given}: what a yaml chose is settled by the run; type single keys, e.g. {key.strip('~')}.KEY=VALUE, "
                f"or train {given}"
            )
        if key == "resume":
            raise UserError(f"{given}: a rerun starts anew; to go on, type python -m lit_tfm.train {given}")
        values[key] = override.value()
    return values


def read(run: RunFolder, name: str) -> dict[str, Any]:
    """{} where the run does not say."""
    try:
        return run.read_json(name)
    except (OSError, ValueError, UserError):
        return {}


# ---- before --------------------------------------------------------------------------------------------------------


def tell(console, run: RunFolder, cfg: DictConfig, then: dict[str, Any], now: dict[str, Any]) -> None:
    """What is not as it was, and what keeps numbers from being the same."""
    from lit_tfm.reports.repetition import environment_differences
    from lit_tfm.terminal import visible

    def say(text: str) -> None:
        console.print(visible(text), highlight=False, soft_wrap=True)

    if not then:
        say(f"{run.path} has no environment.json that can be read: what it was made with is not known")
    else:
        different = environment_differences(then, now)
        for name, old, new in different:
            say(f"{name} was {old}, is {new}")
        if not different:
            say("machine, versions and commit are those of the run")
        if now["git"] is not None and not now["git"]["clean"]:
            say("the repository has changes that are not committed: whether the run had the same is not known")
    if not cfg.deterministic:
        say("deterministic=false: equal numbers are likely on a CPU of the same kind, promised only with true")
    summary = read(run, "summary.json")
    if limit := seconds_of(cfg):
        steps = summary.get("steps")
        hint = f"; budget=null trainer.max_steps={steps} repeats its length" if steps else ""
        say(f"budget={cfg.budget}: bounded by {limit:g} s of training, so the numbers depend on how fast it goes{hint}")
    if summary.get("status") != "finished":
        say(f"the run was not finished ({summary.get('status', 'status not known')}): compared as far as it came")


def seconds_of(cfg: DictConfig) -> float | None:
    """The bound in time, where there is one."""
    from lit_tfm import build, hardware

    bound = build.budget_of(cfg.budget, hardware.choose(cfg.trainer))
    return bound.amount if bound is not None and bound.unit == "seconds" else None


def check_data(console, run: RunFolder, cfg: DictConfig, typed: list[str], changed_data: bool) -> None:
    """Raises UserError where the data is not that of the run, unless its settings were typed or it was allowed."""
    from lit_tfm.build import build_data

    then = read(run, "data.json")
    if not then.get("hash"):
        console.print("the run has no data.json that can be read: whether the data is the same is not known")
        return
    now = build_data(cfg).records()
    different = [
        f"{name} was {then[key]}, is {now[key]}"
        for key, name in (("hash", "its hash"), ("tokenizer", "its tokenizer's"))
        if then.get(key) != now[key]
    ]
    if not different:
        return
    what = f"the data is not what the run was trained on ({now['name']}: {'; '.join(different)})"
    asked = [key for key in typed if key.split(".")[0] in ("data", "tokenizer", "seed")]
    if not changed_data and not asked:
        raise UserError(f"{run.path}: {what}; bring the old data back (data.path=WHERE), or type --changed-data")
    console.print(f"{what}: as asked for", highlight=False, soft_wrap=True)


# ---- after ---------------------------------------------------------------------------------------------------------


def compare(console, run: RunFolder, result: Result, typed: list[str]) -> bool:
    """Print metric, then, now, and whether all is the same; that."""
    from rich import box
    from rich.table import Table

    from lit_tfm.reports.reading import read_run
    from lit_tfm.reports.repetition import compare as compare_runs

    found = compare_runs(read_run(run.path), read_run(result.folder))
    if found.metrics:
        table = Table(title="then and now", title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("metric", "then", "now", "difference"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for name, then, now in found.metrics:
            same = repr(then) == repr(now)
            table.add_row(name, f"{then:.10g}", f"{now:.10g}", "none" if same else f"{now - then:+.3g}")
        console.print(table)
    console.print(verdict(found, [key for key in typed if key != "output_dir"]), highlight=False, soft_wrap=True)
    return found.identical


def verdict(found, changed: list[str]) -> str:
    if not found.compared:
        return "nothing to compare: the two runs logged no number at the same step"
    if found.identical:
        metrics = f"all {len(found.metrics)} metrics and " if found.metrics else ""
        return f"identical to the last digit: {metrics}all {found.compared:,} numbers logged up to step {found.until}"
    text = f"not identical: {found.equal:,} of {found.compared:,} numbers logged up to step {found.until} are"
    if found.first is not None:
        name, then, now = found.first
        text += f"; the first other one is {name} at step {then.step}: {then.value!r}, now {now.value!r}"
    return text + (f"; {', '.join(changed)} was changed" if changed else "")


def main() -> None:
    equal: list[bool] = []
    status = run_verb(lambda: equal.append(rerun()))
    sys.exit(status or int("--check" in sys.argv and not all(equal)))


if __name__ == "__main__":
    main()
