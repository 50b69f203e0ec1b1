"""best.yaml: the best trial as an experiment: `python -m lit_tfm.train experiment=PATH/best.yaml` trains it again.

It composes to the config of the trial: what was searched, derived, fixed and given as budget. With several
objectives every trial of the Pareto front gets a best-<number>.yaml, and best.yaml is the one that is best in the first
objective. Imports no torch.
"""

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf

from lit_tfm import config
from lit_tfm.foreign import load_config
from lit_tfm.runs import write_text
from lit_tfm.search import status
from lit_tfm.search.composer import word
from lit_tfm.search.outcomes import Outcome, outcomes, read_yaml

FRONT = 20  # yamls of a Pareto front at most
# Where a run lies and goes on from, and what it was composed of, are no part of what is trained.
NOT_TRAINED = ("output_dir", "resume", "choices", "allow_targets")
_PLAIN = re.compile(r"[A-Za-z_][\w/.-]*")  # a yaml text that needs no quotes, unless it is one of these
_READ_AS_OTHERS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}


def write(folder: Path, study: optuna.Study, settings: Any) -> Path | None:
    """best.yaml of the sweep in `folder`; None, and no file, where no trial has been completed.

    `settings` is the sweep's SweepConfig.
    """
    folder = Path(folder)
    ranked = status.ranking(study, outcomes(folder, study))
    names = status.metric_names(study, read_yaml(folder / "sweep.yaml"))
    wanted = {"best.yaml": ranked[0]} if ranked else {}
    if len(names) > 1:
        wanted |= {f"best-{trial.number}.yaml": trial for trial in ranked[:FRONT]}
    for path in [*folder.glob("best.yaml"), *folder.glob("best-*.yaml")]:
        if path.name not in wanted:
            path.unlink()
    for name, trial in wanted.items():
        write_text(folder / name, experiment(folder / name, trial, study, names, settings))
    return folder / "best.yaml" if ranked else None


def command(folder: Path, name: str = "best.yaml") -> str:
    """What trains it again, from where the sweep was started."""
    try:
        return (Path(folder) / name).read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
    except (OSError, IndexError):
        return _command(Path(folder) / name, [], None)


def _command(path: Path, words: list[str], config_dir: str | None) -> str:
    inside = path.resolve().is_relative_to(Path.cwd())
    experiment = f"experiment={os.path.relpath(path) if inside else path}"
    options = ["--config-dir", str(config_dir)] if config_dir else []
    return " ".join(["python -m lit_tfm.train", *map(shlex.quote, [*options, experiment, *words])])


def experiment(path: Path, trial: Outcome, study: optuna.Study, names: list[str], settings: Any) -> str:
    """The yaml of one trial."""
    target = _config(trial, settings)
    searched = {name.partition("/")[0] for name in trial.params}
    defaults, words = _origin(target, settings, searched)
    config_dir, allowed = settings.config_dir, target.get("allow_targets")
    typed = [word("allow_targets", list(allowed))] if allowed else []  # no yaml can say that for itself
    base = config.compose([*words, *typed], config_dir)
    values = {"name": target.name} | differences(base, target)  # else it would be called best
    values |= {key: OmegaConf.select(target, key) for key in searched if "." in key and key not in values}
    reached = ", ".join(f"{name} {status.number_text(value)}" for name, value in zip(names, trial.values, strict=True))
    day = (trial.ended or datetime.now()).strftime("%Y-%m-%d")
    lines = [
        "# @package _global_",
        f"# {_command(path, typed, config_dir)}",
        f"# {reached}: trial {trial.number} of the sweep {study.study_name} ({day})",
        "defaults:",
        *(f"  - {line}" for line in defaults),
        "",
        *_lines(nested(values), searched),
    ]
    return "\n".join(lines) + "\n"


def _config(trial: Outcome, settings: Any) -> DictConfig:
    """The trial's own config.yaml; where another machine has it, the config it was composed to."""
    own = trial.runs[0] / "config.yaml"
    if own.is_file():
        return load_config(own)
    return settings.compose(trial.params, trial.number, settings.seeds[0] if settings.seeds else None)


def _origin(target: DictConfig, settings: Any, searched: set[str]) -> tuple[list[str], list[str]]:
    """The defaults list the yaml begins with, and the words of the command line that compose to the same."""
    groups, fixed = set(config.groups()) - {"experiment"}, settings.fixed
    # An experiment that is a file may be gone or changed tomorrow: what it says goes into the yaml itself.
    named = settings.experiment
    named = None if named is None or str(named).endswith((".yaml", ".yml")) else named
    begin = [f"experiment={named}"] if named else []
    known = config.compose(begin, settings.config_dir).choices if named else {}
    chosen = {group: option for group, option in fixed.items() if group in groups}
    for group, option in target.choices.items():
        if group in groups and (group in searched or known.get(group) != option):
            chosen[group] = option
    defaults = [f"override /{g}: {text(o)}{' # searched' if g in searched else ''}" for g, o in chosen.items()]
    return ([named] if named else []) + defaults, begin + [word(group, option) for group, option in chosen.items()]


def differences(base: DictConfig, target: DictConfig) -> dict[str, Any]:
    """{dotted key: value} that make `target` of `base`; what only `base` has becomes null."""
    old, new = dict(_leaves(base)), dict(_leaves(target))
    found = {key: value for key, value in new.items() if key not in old or old[key] != value}
    gone = [key for key in old if key not in new and not any(other.startswith(f"{key}.") for other in new)]
    gone = [key for key in gone if not any(key.startswith(f"{other}.") for other in found)]  # with its parent
    return found | dict.fromkeys(gone)


def _leaves(node: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    for key, value in plain.items():
        if not prefix and key in NOT_TRAINED:
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _lines(tree: Mapping[str, Any], searched: set[str], prefix: str = "") -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, searched, f"{prefix}{key}.")
        else:
            yield f"{indent}{key}: {text(value)}{' # searched' if prefix + key in searched else ''}"


def text(value: Any) -> str:
    """A value in yaml, on one line, so that OmegaConf reads the same one back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text(str(key))}: {text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)) or OmegaConf.is_list(value):
        return "[" + ", ".join(map(text, value)) + "]"
    plain = _PLAIN.fullmatch(str(value)) and str(value).lower() not in _READ_AS_OTHERS
    return str(value) if plain else json.dumps(str(value), ensure_ascii=False)
