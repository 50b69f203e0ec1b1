"""The config of a run: composing it, and explaining what is wrong with it. Imports neither torch nor lightning.

Two habits of Hydra are mended here. A key that is a parameter of a `_target_` but stands in no yaml
(`model.softcap=30`) would need a `+`; and a misspelled key inside an experiment yaml would be added silently. So
overrides of such groups are let through (`loosen`), and every key is then checked against what its `_target_` takes
(`check_keys`).
"""

import hashlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lit_tfm import targets
from lit_tfm.errors import UserError, nearest
from lit_tfm.foreign import check_defaults, check_references, check_resolved, load_config
from lit_tfm.runs import run_of

_PACKAGE = Path(__file__).parent
# A wheel carries conf/ and sweeps/ inside the package; a checkout has them beside it.
ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONF = ROOT / "conf"

# Groups whose keys are the parameters of a `_target_`.
TARGET_GROUPS = ("model", "task", "data", "tokenizer", "optimizer", "schedule", "callbacks", "logger")
_PARAMETER = re.compile(rf"({'|'.join(TARGET_GROUPS)})\.[\w.]+=")
_HOME = re.compile(r"^([\w.]+=)~(?=/|$)")  # a shell leaves it alone behind `key=`
# Hydra makes numbers of names such as 2024 and 2024_11, and true of on.
_PATH = re.compile(r"^((?:output_dir|resume|init_from|cache_dir|data\.path|tokenizer\.path)=)(?!(?i:null)$)([\w.+-]+)$")
# No way out of outputs/, and nothing that a terminal or a page obeys.
_RUN_NAME = re.compile(r"(?!\.)[\w .,+=@()-]+(/(?!\.)[\w .,+=@()-]+)*")
_EXPERIMENT = re.compile(r"^experiment=(['\"]?[^'\"]+\.ya?ml['\"]?)$")
_files: dict[str, Path] = {}  # experiments that are files, by the name Hydra knows them by
_of_loggers: set[str] = set()  # those of them that say how a run is logged
# What Hydra raises for a mistake while composing: its own, omegaconf's, the yaml reader's.
COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
# What build.py passes itself; a yaml that names them is as wrong as any unknown key.
SUPPLIED = {
    "model": {"vocab_size"},
    "task": {"model", "facts", "optimizer", "schedule"},
    "data": {"tokenizer", "seed", "cache_dir"},
    "optimizer": {"named_parameters"},
    "schedule": {"progress"},
    "callbacks": {"monitor", "mode", "folder", "output_dir"},
    "logger": {"save_dir", "resume_step"},
}


def loosen(arguments: Iterable[str]) -> list[str]:
    """`model.softcap=30` -> `++model.softcap=30`: set it whether or not a yaml has named it; `key=~/x` -> home.

    `experiment=PATH.yaml` becomes the name of an experiment that Hydra knows. Raises UserError where it can't be read,
    and for a group that is set to a list of what are no names.
    """
    arguments = list(arguments)
    for argument in arguments:
        _check_choices(argument)
    homely = [_EXPERIMENT.sub(lambda found: f"experiment={register(found.group(1))}", at_home(a)) for a in arguments]
    return [f"++{argument}" if _PARAMETER.match(argument) else argument for argument in homely]


def _check_choices(argument: str) -> None:
    """`logger=[null]`: Hydra itself ends in a TypeError."""
    group, _, chosen = argument.lstrip("+").partition("=")
    if not chosen.startswith("[") or group.partition("@")[0] not in groups():
        return
    try:
        names = OverridesParser.create().parse_override(argument).value()
    except HydraException:  # told in one line when all are composed
        return
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{argument}: a list of names is needed, e.g. 'logger=[tensorboard,wandb]'")


def register(path: str | Path) -> str:
    """The name under which Hydra finds the experiment in the yaml `path`, wherever it lies."""
    path = Path(str(path).strip("'\"")).expanduser()
    try:
        content = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, *COMPOSING) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UserError(f"experiment={path}: can't be read: {reason}") from error
    if not isinstance(content, DictConfig) or not content:
        raise UserError(f"experiment={path}: holds no keys; an experiment states what differs, e.g. seed: 2")
    # Hydra would call what stands under its own keys.
    if "hydra" in content or re.search(r"hydra|@", OmegaConf.to_yaml(content.get("defaults") or OmegaConf.create([]))):
        raise UserError(f"experiment={path}: an experiment sets keys of the run only, and this one sets Hydra's own")
    plain = OmegaConf.to_container(content)
    check_references(plain, f"experiment={path}")
    check_defaults(plain.get("defaults") or [], groups(), f"experiment={path}")
    name = f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    ConfigStore.instance().store(name=name, node=content, group="experiment", package="_global_")
    _files[name] = path
    if "logger" in plain or "logger" in str(plain.get("defaults")):
        _of_loggers.add(name)
    return name


def at_home(argument: str) -> str:
    """`key=~/x`, which a shell leaves alone, with the home folder in place; a path that looks like a number quoted."""
    return _PATH.sub(r"\1'\2'", _HOME.sub(lambda found: found.group(1) + str(Path.home()), argument))


def compose(overrides: Iterable[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """The config that `python -m lit_tfm.train *overrides` trains, for tests, sweeps and notebooks.

    Raises UserError for whatever the command line would refuse.
    """
    return finish(*compose_unfinished(overrides, config_dir))


def compose_unfinished(
    overrides: Iterable[str] = (), config_dir: str | Path | None = None
) -> tuple[DictConfig, DictConfig, list[str]]:
    """What `finish` takes: the config with its interpolations, the yaml chosen of each group, the overrides."""
    overrides = loosen(overrides)
    if config_dir is not None:
        overrides.append(f"hydra.searchpath=[file://{Path(config_dir).resolve()}]")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra_compose("train", overrides, return_hydra_config=True)
    except COMPOSING as error:
        raise explain(error) from error
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices, overrides


def finish(
    cfg: DictConfig,
    choices: DictConfig | None = None,
    typed: Iterable[str] | None = None,
    keys_checked: bool = False,
) -> DictConfig:
    """Name the run, note which yaml of each group it was made of, resolve it, and check every key and value.

    `choices` and `typed` (the overrides) are those of the running Hydra job where they are not given. `keys_checked`: a
    config with the same keys has been finished before, so only its values can be wrong.
    """
    choices = choices if choices is not None else HydraConfig.get().runtime.choices
    words = list(typed if typed is not None else HydraConfig.get().overrides.task)
    allowed = targets.typed(words)
    targets.allow(allowed)
    chosen = {group: choices[group] for group in (*TARGET_GROUPS[:6], "experiment") if choices.get(group)}
    if chosen.get("experiment") in _files:
        chosen["experiment"] = _files[chosen["experiment"]].stem
    with open_dict(cfg):
        cfg.choices = chosen
        cfg.allow_targets = allowed  # what a yaml says of it counts for nothing
        said = OmegaConf.is_interpolation(cfg, "name") or OmegaConf.is_missing(cfg, "name")  # which `resolve` refuses
        if not (said or cfg.name):
            cfg.name = chosen.get("experiment") or f"{chosen.get('model')}-{chosen.get('task')}"
    resolve(cfg)
    cfg, composed = _continued(cfg, words), cfg
    if cfg is composed and choices.get("experiment") not in _of_loggers:
        targets.allow(_typed_loggers(cfg, words))
    if not keys_checked:
        check_keys(cfg)
    check_values(cfg)
    return cfg


def resolve(cfg: DictConfig) -> None:
    """Read every interpolation, once: afterwards there are none. Raises UserError where one can't be read, or where
    what it reads as would be another, which whoever asks for the value next would read without a check."""
    try:
        OmegaConf.resolve(cfg)
    except COMPOSING as error:  # ${name} of nothing
        raise explain(error) from error
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{missing[0]}=???: a value is needed; type {missing[0]}=VALUE")
    check_resolved(OmegaConf.to_container(cfg))


def _continued(cfg: DictConfig, typed: list[str]) -> DictConfig:
    """With `resume=PATH` and no group chosen: the run's own config, under what was typed.

    So that going on with a run needs no more words than its folder.
    """
    if cfg.resume in (None, "auto"):
        return cfg
    stored = run_of(Path(str(cfg.resume))) / "config.yaml"
    overrides = OverridesParser.create().parse_overrides(typed)
    if not stored.is_file() or any(override.key_or_group in groups() for override in overrides):
        return cfg
    old = load_config(stored)
    old.resume_force = False  # once is not for ever
    for override in overrides:
        if not override.key_or_group.startswith("hydra"):
            OmegaConf.update(old, override.key_or_group, override.value(), force_add=True)
    resolve(old)  # what was typed may refer to other keys
    return old


def _typed_loggers(cfg: DictConfig, typed: list[str]) -> list[str]:
    """The modules of loggers that the command line itself asks for: `logger=wandb`, `logger.wandb.project=mine`."""
    names: set[str] = set()
    for override in OverridesParser.create().parse_overrides(typed):
        group, _, rest = override.key_or_group.partition(".")
        if group == "logger" and not override.is_delete():
            chosen = override.value() if not rest else rest.partition(".")[0]
            names |= {str(name) for name in (chosen if isinstance(chosen, list) else [chosen])}
    nodes = [(cfg.get("logger") or {}).get(name) for name in sorted(names)]
    return [module for node in nodes if (module := _sending(node)) is not None]


def _sending(node: object) -> str | None:
    return targets.sending(node.get("_target_")) if isinstance(node, DictConfig) else None


def default_output_dir(cfg: DictConfig) -> Path:
    return Path("outputs") / str(cfg.name) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


# ---- explaining ------------------------------------------------------------------------------------------------


def explain(error: Exception) -> UserError:
    """One line for a mistake that Hydra found while composing."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        known = error.options or [path.stem for path in (CONF / group).glob("*.yaml")]  # of a list Hydra names none
        options = sorted({option.rpartition("/")[2] for option in known} - set(_files))
        if group and options:
            return UserError(
                f"{group}={option}: no such {group}{nearest(option, options)}; there is {', '.join(options)}"
            )
        return UserError(" ".join(str(error).split()))
    text = str(error)
    if isinstance(error, OverrideParseException):
        given = str(error.override).removeprefix("++")  # config.loosen put it there
        return UserError(f"{given!r} is no override; type key=value, e.g. seed=2 or model.d_model=256")
    if isinstance(error, ConfigCompositionException):
        if found := re.search(r"Could not override '([^']+)'", text):
            return unknown_key(found.group(1))
        if found := re.search(r"In '([^']+)': Could not find|Could not find '([^']+)'", text):
            return UserError(" ".join(text.split()))
    cause = f" ({' '.join(str(error.__cause__).split())})" if error.__cause__ else ""
    return UserError(" ".join(text.split()) + cause)


def unknown_key(key: str) -> UserError:
    key = key.partition("@")[0]
    known = known_keys()
    parent, _, leaf = key.rpartition(".")
    siblings = [k[len(parent) + 1 :] for k in known if k.startswith(f"{parent}.")] if parent else known
    if parent and not siblings:  # the mistake is before the dot
        parent, leaf, siblings = "", key.partition(".")[0], known
    near = nearest(leaf if parent else key.partition(".")[0], [s for s in siblings if "." not in s])
    return UserError(f"{key}: no such key{near}; `--cfg job` prints all of them")


@cache
def known_keys() -> list[str]:
    """Top-level keys, groups, and `trainer.*`: those whose names do not come from a `_target_`."""
    born = OmegaConf.load(CONF / "train.yaml")
    keys = [str(key) for key in born if key not in ("defaults", "hydra")] + groups()
    return [*keys, "choices", *(f"trainer.{key}" for key in OmegaConf.load(CONF / "trainer" / "auto.yaml"))]


@cache
def groups() -> list[str]:
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    names = [name.split()[-1].strip("/") for entry in defaults if not isinstance(entry, str) for name in entry]
    return [name for name in names if "/" not in name]


# ---- checking --------------------------------------------------------------------------------------------------


def check_keys(cfg: DictConfig) -> None:
    """Every key of the composed config is one that something reads; an experiment yaml gets no typo past this."""
    known = known_keys()
    for key in cfg:
        if key not in known:
            raise unknown_key(str(key))
    for key in cfg.trainer:
        if f"trainer.{key}" not in known:
            raise unknown_key(f"trainer.{key}")
    for group in TARGET_GROUPS:
        _check_node(cfg.get(group), group)


# Key, kind, smallest, largest (None: any), and whether null is allowed.
VALUES = (
    ("seed", int, 0, 2**32 - 1, False),
    ("deterministic", bool, None, None, False),
    ("test", bool, None, None, False),
    ("dry_run", bool, None, None, False),
    ("resume_force", bool, None, None, False),
    ("auto_batch", bool, None, None, True),
    ("cache_dir", str, None, None, False),
    ("output_dir", str, None, None, True),
    ("resume", str, None, None, True),
    ("init_from", str, None, None, True),
    ("trainer.num_nodes", int, 1, None, False),
    ("trainer.max_steps", int, 1, None, True),
    ("trainer.max_epochs", float, 1e-9, None, True),
    ("trainer.accumulate", int, 1, None, False),
    ("trainer.val_every", float, 1e-9, None, False),
    ("trainer.log_every", int, 1, None, False),
    ("trainer.emulate_bf16", bool, None, None, False),
    ("optimizer.lr", float, 0, None, True),
    ("task.grad_clip", float, 0, None, True),
    ("task.label_smoothing", float, 0, 0.999, True),
    ("task.bad_steps", int, 1, None, True),
    ("task.rate", float, 1e-9, 1, True),
    ("schedule.warmup", float, 0, 1, True),
    ("schedule.cooldown", float, 0, 1, True),
    ("tokenizer.vocab_size", int, 1, None, True),
    ("data.batch_size", int, 1, None, True),
    ("data.batch_tokens", int, 1, None, True),
    ("data.max_length", int, 1, None, True),
    ("data.block_size", int, 1, None, True),
    ("data.num_workers", int, 0, None, True),
    ("data.holdout.validation", float, 0, None, True),
    ("data.holdout.test", float, 0, None, True),
    ("data.subset", int, 1, None, True),
    ("data.val_limit", int, 1, None, True),
    ("data.test_limit", int, 1, None, True),
)
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def check_values(cfg: DictConfig) -> None:
    """Numbers are numbers and in their range; groups are there. What needs more than the config is checked later."""
    for group in TARGET_GROUPS[:6]:
        if not isinstance(cfg.get(group), DictConfig):
            raise UserError(f"{group}={cfg.get(group)}: a run needs one; `--help` lists them")
    for group in TARGET_GROUPS[6:]:
        nodes = cfg.get(group) or {}
        if not isinstance(nodes, DictConfig | dict):
            raise UserError(f"{group}={nodes}: it has parts with names, each with a _target_; `--help` lists them")
        for name, node in nodes.items():
            if node is not None and not (isinstance(node, DictConfig) and "_target_" in node):
                raise UserError(f"{group}.{name}={node}: type {group}.{name}=null, or {group}.{name}.KEY=VALUE")
    if not _RUN_NAME.fullmatch(str(cfg.name)):
        raise UserError(f"name={cfg.name}: a folder in outputs is called so; letters, digits, blanks and .,+=@-() only")
    for key, kind, low, high, optional in VALUES:
        value = OmegaConf.select(cfg, key)
        if value is None and optional:
            continue
        fits = isinstance(value, (int, float) if kind is float else kind) and (
            kind is bool or not isinstance(value, bool)
        )
        inside = fits and (low is None or value >= low) and (high is None or value <= high)
        if not inside:
            bounds = "".join(
                [
                    f", at least {low:g}" if low else ", not negative" if low == 0 else "",
                    f", at most {high:g}" if high is not None else "",
                ]
            )
            raise UserError(f"{key}={value}: must be {KINDS[kind]}{bounds}")


def _check_node(node, path: str) -> None:
    if isinstance(node, ListConfig):
        for i, child in enumerate(node):
            _check_node(child, f"{path}[{i}]")
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        allowed = parameters(node._target_, path)
        for key in node:
            if allowed is not None and key not in allowed and not str(key).startswith("_"):
                raise UserError(
                    f"{path}.{key}: no such key{nearest(key, allowed)}; {node._target_} takes {', '.join(allowed)}"
                )
    for key in node:
        _check_node(node[key], f"{path}.{key}")


def parameters(target: str, path: str) -> list[str] | None:
    """Names a `_target_` can be given in a yaml; None where it takes anything.

    A class whose `Config` is a dataclass takes that dataclass's fields. Raises UserError for what no config may name.
    """
    call = targets.find(target, path)
    supplied = {"self", *SUPPLIED.get(re.split(r"\W", path)[0], ())}
    config = getattr(call, "Config", None)
    if is_dataclass(config):
        return sorted({f.name for f in fields(config)} - supplied)
    names: set[str] = set()
    for owner in call.__mro__ if inspect.isclass(call) else (call,):
        signature = inspect.signature(owner.__init__ if inspect.isclass(owner) else owner)
        kinds = {p.kind for p in signature.parameters.values()}
        names |= {p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if inspect.Parameter.VAR_KEYWORD not in kinds:  # what is passed on ends here
            return sorted(names - supplied)
    return None
