"""A sweep as it was asked for: sweeps/NAME.yaml under what was typed. Whatever can be wrong with it is found here,
before a study exists.

Storing (`to_plain`) and reading it again needs no composing; `space` and `compose` do that on first use.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import optuna
from omegaconf import DictConfig, OmegaConf

from lit_tfm import config
from lit_tfm.errors import UserError, nearest
from lit_tfm.foreign import check_references
from lit_tfm.search.composer import Composer, read_word, word
from lit_tfm.search.expressions import is_number
from lit_tfm.search.samplers import GRID, build, check_sampler, grid
from lit_tfm.search.space import Space
from lit_tfm.search.storage import check_storage
from lit_tfm.tasks.budget import Budget, nominal

KINDS = ("crash", "oom", "nan", "timeout")  # of failure
RETRIES = {"crash": 1, "oom": 1, "nan": 0, "timeout": 0}
DIRECTIONS = ("minimize", "maximize")
# What a trial is told besides the metrics of its run.
FIGURES = {"parameters", "flops_per_token", "tokens_per_second", "seconds"}
# Keys of a run that are the sweep's own business.
OWN = {
    "output_dir": "the sweep names the trials' folders",
    "resume": "running the sweep's command again goes on with it",
    "dry_run": "try one trial with lit_tfm.train first",
    "experiment": "write experiment=NAME beside the space, not in it",
}
MASK = "***"
_KEY = re.compile(r"\+{0,2}[\w./@:-]+")  # one key of the command line, not several words of it
# Of pruners: how far a trial is. Floats are shares of it, whole numbers what it reports.
RESOURCES = ("min_resource", "max_resource", "n_warmup_steps", "interval_steps")


@dataclass(frozen=True)
class SweepConfig:
    """Plain values only. Times are seconds. `metric` and `direction` are tuples, also of one."""

    name: str
    experiment: str
    space_raw: dict[str, Any]
    fixed: dict[str, Any] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    metric: tuple[str, ...] = ("val/loss",)
    direction: tuple[str, ...] = ("minimize",)
    n_trials: int = 20  # in total, failed and pruned ones included
    timeout: float | None = None  # of the whole sweep
    trial_timeout: float | None = None
    budget: str | None = None  # of each trial: 90s, 2e6 tokens, 1e13 flops; None: the experiment's own
    rungs: tuple[float, ...] | None = None  # shares of the budget at which a trial reports; None: every validation
    seeds: tuple[int, ...] | None = None  # a trial trains once with each and reports the mean; None: once
    sampler: dict[str, Any] = field(default_factory=lambda: {"_target_": "optuna.samplers.TPESampler"})
    pruner: dict[str, Any] | None = None
    retries: dict[str, int] = field(default_factory=lambda: dict(RETRIES))
    workers: int = 1
    gpus_per_trial: int = 1
    trials_per_gpu: int = 1
    seed: int = 1  # the sampler's
    storage: str | None = None  # None: study.journal in the folder
    output_dir: str | None = None  # None: outputs/sweeps/<name>
    config_dir: str | None = None
    allow_targets: tuple[str, ...] = ()  # typed, never stored

    def __post_init__(self) -> None:
        """Raises UserError for keys that only whoever starts a sweep may set."""
        for where, keys in (("fixed", self.fixed), ("space", self.space_raw)):
            for key in keys:
                top = re.split(r"[.@/]", str(key).lstrip("+~ /"))[0]
                if top in ("allow_targets", "hydra") or not _KEY.fullmatch(str(key)):
                    raise UserError(f"{where}.{key}: no key that a sweep may set; type allow_targets= itself as a word")

    # ---- what follows --------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return Path(self.output_dir or Path("outputs") / "sweeps" / self.name)

    def trial_folder(self, number: int, seed: int | None = None) -> Path:
        folder = self.folder / "trials" / f"{number:04d}"
        return folder if seed is None else folder / f"seed-{seed}"

    @property
    def multi_objective(self) -> bool:
        return len(self.metric) > 1

    @cached_property
    def composer(self) -> Composer:
        return Composer(self.words(), self.config_dir, self.allow_targets)

    @cached_property
    def space(self) -> Space:
        """Raises UserError where it can't be searched."""
        return Space(self.space_raw, self.composer, self.constraints)

    def words(self) -> list[str]:
        """The command line of every trial, without what is searched."""
        ends = {}
        if self.budget is not None:  # it alone ends a trial, unless the sweep says otherwise
            ends = {"trainer.max_steps": None, "trainer.max_epochs": None, "budget": self.budget}
        allowed = {"allow_targets": list(self.allow_targets)} if self.allow_targets else {}
        values = {"experiment": self.experiment, **ends, **self.fixed, **allowed}
        return [word(key, value) for key, value in values.items()]

    def command_words(self, params: Mapping[str, Any]) -> list[str]:
        """The command line of a trial: `python -m lit_tfm.train` and these trains it once more."""
        return [*self.words(), *self.space.overrides(params)]

    def compose(self, params: Mapping[str, Any], number: int, seed: int | None = None) -> DictConfig:
        """The config of trial `number`, resolved and checked, with its folder."""
        values = self.space.values(params)
        if seed is not None:
            values["seed"] = seed
        return self.composer.compose({**values, "output_dir": str(self.trial_folder(number, seed))})

    def build_sampler(self, salt: int = 0) -> optuna.samplers.BaseSampler:
        """`salt` (a worker's number, an attempt's) keeps processes with the same seed from drawing the same."""
        given = {"seed": self.seed + 1_000_003 * salt}
        if self.sampler.get("_target_") == GRID and "search_space" not in self.sampler:
            given["search_space"] = grid(self.space)
        return build(self.sampler, "sampler", given)

    def build_pruner(self) -> optuna.pruners.BasePruner | None:
        if self.pruner is None:
            return None
        whole = {} if self.seeds or self._budget_of_trials() == "auto" else {"max_resource": self._step("", 1.0)}
        return build(self._in_steps(self.pruner), "pruner", whole)

    def _in_steps(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """A pruner's resources that are shares of a trial, as the numbers that trials report (tasks/budget.py)."""
        shares = {key for key in RESOURCES if isinstance(node.get(key), float) and 0 < node[key] <= 1}
        within = {key for key, value in node.items() if isinstance(value, Mapping) and "_target_" in value}
        return {
            key: self._in_steps(value) if key in within else self._step(key, value) if key in shares else value
            for key, value in node.items()
        }

    def _step(self, key: str, share: float) -> int:
        budget = self._budget_of_trials()
        if budget == "auto" or self.seeds:
            need = "seeds=null" if self.seeds else "a budget, e.g. budget='2e6 tokens'"
            raise UserError(f"pruner.{key}={share}: a share of a trial needs {need}; or give a whole number of steps")
        return nominal(share, None if budget is None else Budget.parse(budget))

    def _budget_of_trials(self) -> str | int | float | None:
        return self.budget if self.budget is not None else self.composer.base({}).budget

    # ---- storing -------------------------------------------------------------------------------------------------

    def to_plain(self) -> dict[str, Any]:
        """For sweep.yaml. A password in the storage's URL is masked."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "allow_targets"}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
        plain["space"] = plain.pop("space_raw")
        plain["storage"] = masked(self.storage)
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], storage: str | None = None) -> "SweepConfig":
        """What `to_plain` gave; `storage` is the URL where its password was masked. Raises UserError for the rest."""
        unknown = set(plain) - {f.name for f in fields(cls)} - {"space"}
        if unknown or not {"name", "experiment", "space"} <= set(plain):
            raise UserError(f"no sweep: {', '.join(sorted(unknown)) or 'name, experiment or space is missing'}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        values["space_raw"] = values.pop("space")
        values.pop("allow_targets", None)  # only what was typed may widen what a config may call
        return cls(**{**values, "storage": storage or values.get("storage")})

    def fingerprint(self) -> dict[str, Any]:
        """What may not change while a study goes on; compare two with `Space.differences`."""
        told = {name: getattr(self, name) for name in ("experiment", "metric", "direction", "budget", "seeds", "rungs")}
        told = {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}
        fixed = {f"fixed.{key}": value for key, value in sorted(self.fixed.items()) if key not in ("cache_dir",)}
        return {**told, **fixed, **self.space.fingerprint()}


def masked(storage: str | None) -> str | None:
    """postgresql://user:secret@host/db -> postgresql://user:***@host/db"""
    if storage is None or "://" not in storage:
        return storage
    parts = urlsplit(storage)
    if parts.password is None:
        return storage
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", f":{MASK}@")))


# ---- reading -----------------------------------------------------------------------------------------------------


def load(arguments: list[str], config_dir: str | Path | None = None) -> SweepConfig:
    """`sweep=NAME|PATH.yaml`, keys of the sweep, and anything else for all trials (`data.path=...`), as typed.

    Raises UserError, in one line, for whatever is wrong with it.
    """
    sweep = read(arguments, config_dir)
    check(sweep)
    return sweep


def read(arguments: list[str], config_dir: str | Path | None = None) -> SweepConfig:
    """As `load`, to look at a sweep only: nothing is composed, so the parts may still not fit each other."""
    typed = [read_word(argument) for argument in arguments]
    names = [value for key, value in typed if key == "sweep"]
    if len(names) != 1:
        raise UserError(f"type one sweep=NAME; there is {', '.join(known_sweeps())}, or sweep=PATH.yaml")
    path = find(str(names[0]))
    raw = read_yaml(path)
    for key, value in typed:
        if key != "sweep":
            _apply(raw, key, value)
    sweep = _checked({"name": path.stem, **raw}, str(config_dir) if config_dir else None)
    if path.parent != config.ROOT / "sweeps" and not any(key == "storage" for key, _ in typed):
        check_storage(sweep.storage, sweep.folder, path)
    return sweep


def known_sweeps() -> list[str]:
    return sorted(path.stem for path in (config.ROOT / "sweeps").glob("*.yaml"))


def find(name: str) -> Path:
    """The yaml of a sweep's name or path."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"sweep={name}: there is no such file; name a yaml, or one of {', '.join(known_sweeps())}")
        return path
    path = config.ROOT / "sweeps" / f"{name}.yaml"
    if name not in known_sweeps():
        known = known_sweeps()
        raise UserError(f"sweep={name}: no such sweep{nearest(name, known)}; there is {', '.join(known)}")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises UserError for what is no yaml, or names a key that a sweep does not have."""
    try:
        loaded = OmegaConf.load(path)
        check_references(OmegaConf.to_container(loaded), path)
        raw = OmegaConf.to_container(loaded, resolve=True)
        check_references(raw, path)  # `${a}{oc.env:TOKEN}`, where a is a $, would be read once more with each trial
    except (OSError, UnicodeDecodeError, *config.COMPOSING) as error:
        raise UserError(f"{path}: can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not raw:
        raise UserError(f"{path}: holds no keys; a sweep has experiment, metric, direction, n_trials, space ...")
    for key in raw:
        if key not in _keys():
            raise UserError(f"{path}: {key}: a sweep has no such key{nearest(str(key), _keys())}")
    return {str(key): value for key, value in raw.items()}


def _keys() -> list[str]:
    """What a sweep's yaml may hold."""
    hidden = ("space_raw", "config_dir", "allow_targets")
    return ["space", *(f.name for f in fields(SweepConfig) if f.name not in hidden)]


def _apply(raw: dict[str, Any], key: str, value: Any) -> None:
    """One word of the command line on the sweep's yaml; what is no key of a sweep is fixed for all trials."""
    deleted, key = key.startswith("~"), key.lstrip("~")
    top, _, rest = key.partition(".")
    if top in ("fixed", "space") and rest:
        _apply_nested(raw, top, rest, None if deleted else value)
    elif deleted:
        raise UserError(f"~{key}: only ~space.KEY and ~fixed.KEY can be taken away")
    elif top == "allow_targets":
        raw["allow_targets"] = value
    elif top in _keys() and rest and top in ("sampler", "pruner", "retries"):
        node = raw.get(top)
        node = _as_retries(node) if top == "retries" else node
        if node is None and top == "pruner":
            raise UserError(
                f"{key}={value}: the sweep has no pruner; type pruner._target_=optuna.pruners.MedianPruner first"
            )
        raw[top] = {**(node or {"_target_": "optuna.samplers.TPESampler"}), rest: value}
    elif top in _keys():
        if rest:
            raise UserError(f"{key}: {top} has no parts; type {top}=VALUE")
        raw[top] = value
    else:
        _apply_fixed(raw, key, value)


def _apply_nested(raw: dict[str, Any], top: str, rest: str, value: Any) -> None:
    """`space.KEY={low:..}`, `space.KEY.low=..`, and null takes an entry away."""
    node = dict(raw.get(top) or {})
    parent, _, leaf = rest.rpartition(".")
    if top == "space" and leaf in ("low", "high", "log", "step", "choices", "when", "value") and parent in node:
        entry = node[parent] if isinstance(node[parent], Mapping) else {"value": node[parent]}
        node[parent] = {**entry, leaf: value}
    elif top == "space" and value is None:
        if rest not in node:
            raise UserError(f"space.{rest}=null: it is not searched{nearest(rest, node)}")
        del node[rest]
    else:
        node[rest] = value
    raw[top] = node


def _apply_fixed(raw: dict[str, Any], key: str, value: Any) -> None:
    known = [*_keys(), "sweep", *(name for name in config.known_keys() if "." not in name)]
    top = key.partition(".")[0].partition("@")[0].partition("/")[0]
    if top not in known or top == "hydra":
        raise UserError(f"{key}: no such key{nearest(top, known)}; neither a sweep nor a run has it")
    fixed = dict(raw.get("fixed") or {})
    fixed[key] = value
    raw["fixed"] = fixed


# ---- checking ----------------------------------------------------------------------------------------------------


def _checked(raw: dict[str, Any], config_dir: str | None) -> SweepConfig:
    """Every value has its type and range."""
    given = dict(raw)
    for key in ("experiment", "space"):
        if not given.get(key):
            raise UserError(f"{key}: a sweep needs one; type {key}=... or write it into the sweep's yaml")
    values = {
        "name": _text(given, "name"),
        "experiment": _text(given, "experiment"),
        "space_raw": _mapping(given, "space"),
        "fixed": _flat(_mapping(given, "fixed")),
        "constraints": tuple(map(str, _list(given, "constraints"))),
        "metric": tuple(map(str, _list(given, "metric", ["val/loss"]))),
        "direction": tuple(map(str, _list(given, "direction", ["minimize"]))),
        "timeout": _time(given, "timeout"),
        "trial_timeout": _time(given, "trial_timeout"),
        "budget": _budget(given.get("budget")),
        "rungs": _rungs(given.get("rungs")),
        "seeds": _seeds(given.get("seeds")),
        "sampler": _mapping(given, "sampler") or {"_target_": "optuna.samplers.TPESampler"},
        "pruner": _mapping(given, "pruner") or None,
        "retries": _as_retries(given.get("retries")),
        "storage": None if given.get("storage") is None else _text(given, "storage"),
        "output_dir": None if given.get("output_dir") is None else _text(given, "output_dir"),
        "config_dir": config_dir,
        "allow_targets": tuple(map(str, _list(given, "allow_targets"))),
    }
    for key, least, usual in (
        ("n_trials", 1, 20),
        ("workers", 1, 1),
        ("gpus_per_trial", 0, 1),
        ("trials_per_gpu", 1, 1),
        ("seed", 0, 1),
    ):
        values[key] = _count(given, key, least, usual)
    return SweepConfig(**values)


def check(sweep: SweepConfig) -> None:
    """The parts fit each other, and there is something to try. Raises UserError for the first that does not."""
    _check_objectives(sweep)
    _check_own_keys(sweep)
    space = sweep.space
    for key in sweep.space_raw:
        if key in sweep.fixed:
            raise UserError(f"{key} is searched and fixed at {sweep.fixed[key]}; type ~space.{key} to fix it")
    check_sampler(str(sweep.sampler.get("_target_")), space, len(sweep.metric))
    sweep.build_sampler()
    sweep.build_pruner()
    sweep.composer.base({})
    space.check_feasible()


def _check_objectives(sweep: SweepConfig) -> None:
    if len(sweep.metric) != len(sweep.direction):
        raise UserError(
            f"metric has {len(sweep.metric)} names and direction {len(sweep.direction)}; "
            "give one direction for each metric, e.g. metric=[val/loss,parameters] direction=[minimize,minimize]"
        )
    if len(set(sweep.metric)) < len(sweep.metric):
        raise UserError(f"metric={list(sweep.metric)}: a name stands there twice")
    for direction in sweep.direction:
        if direction not in DIRECTIONS:
            near = nearest(direction, DIRECTIONS) or "; it can be minimize or maximize"
            raise UserError(f"direction={direction}: no such direction{near}")
    for name in sweep.metric:
        if name not in FIGURES and not re.fullmatch(r"(val|test|train)/[\w./-]+", name):
            near = nearest(name, [*FIGURES, "val/loss", "val/accuracy"])
            raise UserError(
                f"metric={name}: write val/NAME, e.g. val/loss, or one of {', '.join(sorted(FIGURES))}{near}"
            )
    if sweep.multi_objective and sweep.pruner is not None:
        raise UserError("a pruner compares trials by one metric, and there are several; type pruner=null")


def _check_own_keys(sweep: SweepConfig) -> None:
    for where, keys in (("space", sweep.space_raw), ("fixed", sweep.fixed)):
        for key in keys:
            if key in OWN:
                raise UserError(f"{where}.{key}: {OWN[key]}")
            if key in _keys() and key not in ("seed", "name"):
                raise UserError(f"{where}.{key}: {key} is a key of the sweep itself; type {key}={keys[key]}")
    if "seed" in sweep.space_raw and sweep.seeds:
        raise UserError("seed is searched, and seeds names those of every trial; leave one out")
    if "seed" in sweep.fixed and sweep.seeds:
        raise UserError("fixed.seed and seeds both name the seed of a trial; leave one out")
    if sweep.budget is None:
        return
    for key in ("trainer.max_steps", "trainer.max_epochs"):
        if key in sweep.space_raw:
            raise UserError(
                f"space.{key}: budget={sweep.budget} ends every trial, so that all get the same; "
                f"type ~space.{key}, or budget=null"
            )


# ---- single values -----------------------------------------------------------------------------------------------


def _text(given: Mapping[str, Any], key: str) -> str:
    value = given[key]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key}={value}: a text is needed")
    if key == "name" and not re.fullmatch(r"[\w][\w.-]*", value):
        raise UserError(f"name={value}: letters, digits, - _ and . only: a folder is called so")
    return value


def _mapping(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        hint = f"type {key}._target_=optuna.{key}s.NAME" if key in ("sampler", "pruner") else "write KEY: VALUE lines"
        raise UserError(f"{key}={value}: not a mapping; {hint}")
    return dict(value)


def _flat(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings under dotted keys, as the command line has them."""
    for key, value in fixed.items():
        if isinstance(value, Mapping) and "." not in str(key) and "_target_" not in value:
            raise UserError(f"fixed.{key}: write dotted keys, e.g. {key}.{next(iter(value), 'KEY')}: VALUE")
    return {str(key): value for key, value in fixed.items()}


def _list(given: Mapping[str, Any], key: str, usual: list | None = None) -> list[Any]:
    value = given.get(key)
    if value is None:
        return usual or []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _count(given: Mapping[str, Any], key: str, least: int, usual: int) -> int:
    value = given.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key}={value}: must be a whole number, at least {least}")
    return value


def _time(given: Mapping[str, Any], key: str) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    try:
        budget = Budget.parse(value, key)
    except UserError:
        budget = None
    if isinstance(value, bool) or budget is None or budget.unit != "seconds":
        raise UserError(f"{key}={value}: not a time; type a number and s, m or h, e.g. {key}=2h, or {key}=null")
    return budget.amount


def _budget(value: Any) -> str | None:
    if value is None:
        return None
    if value == "auto" or isinstance(value, bool):
        raise UserError(
            f"budget={value}: each trial's; type e.g. budget=90s, budget='2e6 tokens' or budget='1e13 flops'"
        )
    Budget.parse(value)
    return str(value)


def _rungs(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    good = isinstance(value, (list, tuple)) and value and all(is_number(v) and 0 < v <= 1 for v in value)
    if not good or list(value) != sorted(set(value)):
        raise UserError(f"rungs={value}: rising shares of a trial's budget are needed, e.g. rungs=[0.1,0.3,1]")
    return tuple(map(float, value))


def _seeds(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    good = isinstance(value, (list, tuple)) and value
    if (
        not good
        or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
        or len(set(value)) < len(value)
    ):
        raise UserError(f"seeds={value}: different whole numbers are needed, e.g. seeds=[1,2,3], or null")
    return tuple(value)


def _as_retries(value: Any) -> dict[str, int]:
    """One number is for every kind of failure."""
    if value is None:
        return dict(RETRIES)
    given = dict.fromkeys(KINDS, value) if not isinstance(value, Mapping) else {**RETRIES, **value}
    for kind, times in given.items():
        if kind not in KINDS:
            raise UserError(
                f"retries.{kind}: no such kind of failure{nearest(str(kind), KINDS)}; there is {', '.join(KINDS)}"
            )
        if isinstance(times, bool) or not isinstance(times, int) or times < 0:
            raise UserError(f"retries.{kind}={times}: must be a whole number, not negative")
    return given
