"""Which `_target_`s a config may name.

A config may come from somebody else: a run folder, a sweep, a best.yaml. `_target_` is a call, so what it names is
checked before anything is imported for it, and again after: only parts that a run is made of (models, tasks, data,
tokenizers, optimizers, schedules, callbacks, loggers, metrics) of this package, torch, Lightning and torchmetrics.
Being reachable is not enough: `lit_tfm.callbacks.record.subprocess.Popen` would be no part, wherever it is found.

A logger that sends a run's numbers to another machine is a part as well, but only whoever starts the run can want
that: it is made where the command line says so (`logger=wandb`), not because a file from elsewhere does.

What was checked is what is called (`call`): a plain tree without interpolations, which would be read once for the check
and once more, perhaps differently, for the call.

Modules of one's own are allowed by typing `allow_targets=my_tasks`. What a stored config says about that counts for
nothing. The word is kept in the environment, so that the ranks and trials that this process starts have it as well.
"""

import inspect
import json
import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig

from lit_tfm import annotations
from lit_tfm.errors import UserError

VARIABLE = "LIT_TFM_ALLOW_TARGETS"
OWN = tuple(f"lit_tfm.{part}" for part in ("models", "tasks", "data", "optim", "callbacks", "nn"))
LIGHTNING = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "lightning.pytorch.profilers")
# text and image metrics load models and weights from wherever their arguments say
METRICS = tuple(
    f"torchmetrics.{kind}" for kind in ("classification", "regression", "aggregation", "retrieval", "nominal")
)
HOMES = (*OWN, "torch.nn", "torch.optim", *LIGHTNING, *METRICS)
# By name, so that checking imports none of them.
KINDS = {
    "torch.nn.modules.module.Module",  # models and tasks too
    "torch.optim.optimizer.Optimizer",
    "torchmetrics.metric.Metric",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.core.datamodule.LightningDataModule",
    "lightning.pytorch.loggers.logger.Logger",
    "lightning.pytorch.profilers.profiler.Profiler",
    "lit_tfm.data.tokenizers.Recipe",
}
MAKERS = ("lit_tfm.optim", "lit_tfm.callbacks")  # where functions make such a thing
SCHEDULES = "lit_tfm.optim.schedules"  # number in, number out
LOGGERS = "lightning.pytorch.loggers"
STAYING = (
    f"{LOGGERS}.tensorboard",
    f"{LOGGERS}.csv_logs",
    "lit_tfm.callbacks",
)  # loggers that write into the run folder
# Made by build.py alone: it cuts off what stands beyond a step in the file it is given.
CLOSED = ("lit_tfm.callbacks.metrics_csv",)
SPECIAL = ("_target_", "_partial_", "_args_")
_PLACE = re.compile(r"dir|path|ur[il]|host")  # names of parameters that say where something is written or read
_TYPED = re.compile(r"\+*allow_targets=")


def allow(names: Iterable[str]) -> None:
    """From now on, in this process and those it starts, configs may name what lives in these modules."""
    there = allowed()
    os.environ[VARIABLE] = ",".join([*there, *(str(name) for name in names if str(name) not in there)])


def allowed() -> tuple[str, ...]:
    return tuple(filter(None, os.environ.get(VARIABLE, "").split(",")))


def trusted(module: str) -> bool:
    return _under(module, allowed())


def typed(words: Iterable[str]) -> list[str]:
    """The modules that the words of a command line allow: `allow_targets=my_tasks`, `allow_targets=[a,b.c]`."""
    names: list[str] = []
    for word in filter(_TYPED.match, words):
        try:
            value = OverridesParser.create().parse_override(word).value()
        except HydraException:
            value = None
        found = [str(name) for name in (value if isinstance(value, list) else [value])]
        if not all(re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name) for name in found) or value is None:
            raise UserError(
                f"{word}: modules are needed, e.g. allow_targets=my_tasks or 'allow_targets=[my_tasks,my_data]'"
            )
        names += found
    return names


def take(arguments: Iterable[str] | None = None) -> list[str]:
    """For verbs that read a run folder: obey the `allow_targets=` words of a command line and return the others.

    None: the command line of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    allow(typed(words))
    return [word for word in words if not _TYPED.match(word)]


def check(node: Any, path: str) -> None:
    """Raises UserError for the first `_target_` in `node`, however deep, that a config may not name."""
    if isinstance(node, (ListConfig, list, tuple)):
        for i, child in enumerate(node):
            check(child, f"{path}[{i}]")
    elif isinstance(node, (DictConfig, dict)):
        if "_target_" in node:
            find(node["_target_"], path)
        for key in node:
            check(node[key], f"{path}.{key}" if path else str(key))


def call(node: Any, path: str, **supplied: Any) -> Any:
    """`node`, a plain tree, with every `_target_` in it called, the innermost first; `supplied` goes to the outermost.

    `_partial_` and `_args_` as in Hydra. Nothing is called before everything has been checked. Raises UserError for
    what no config may name, and for a place on another machine.
    """
    check(node, path)
    return _called(node, path, supplied)


def _called(node: Any, path: str, supplied: dict[str, Any]) -> Any:
    if isinstance(node, (list, tuple)):
        return [_called(child, f"{path}[{i}]", {}) for i, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    given = {key: _called(value, f"{path}.{key}", {}) for key, value in node.items() if key not in SPECIAL}
    if "_target_" not in node:
        return {**given, **{key: node[key] for key in SPECIAL if key in node}}
    made = find(node["_target_"], path)
    args = _called(node.get("_args_", []), f"{path}._args_", {})
    for key, value in given.items():
        if key.startswith("_"):
            raise UserError(f"{path}.{key}={value}: of such keys there are {', '.join(SPECIAL)}")
        _check_value(made, key, value, f"{path}.{key}")
    for place, (key, value) in enumerate(_positional(made, args, path)):
        if key in given or key in supplied:
            raise UserError(f"{path}._args_[{place}]={value}: {key}, which is given by its name as well; leave one out")
        _check_value(made, key, value, f"{path}._args_[{place}]")
    if node.get("_partial_"):
        return partial(made, *args, **{**given, **supplied})
    return made(*args, **{**given, **supplied})


def _positional(made: Any, args: Any, path: str) -> list[tuple[str, Any]]:
    """The parameters that `_args_` go to, and their values."""
    if not isinstance(args, list):
        raise UserError(f"{path}._args_={args}: a list is needed")
    if not args:
        return []
    parameters = inspect.signature(made).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += [p.name for p in parameters if p.kind is p.VAR_POSITIONAL] * len(args)
    if len(args) > len(names):
        raise UserError(f"{path}._args_={args}: {made.__name__} takes {len(names)} of them; name the values instead")
    return list(zip(names, args, strict=False))


def _check_value(made: Any, key: str, value: Any, path: str) -> None:
    """Raises UserError for a place that no file may name, and for a value of another kind than its parameter."""
    module = made.__module__
    if isinstance(value, str) and _PLACE.search(key) and not trusted(module):
        if "://" in value:
            raise UserError(f"{path}={value}: on another machine; if you trust it, type allow_targets={module}")
        if _under(module, LIGHTNING) and key != "sub_dir":  # build.py says where; a logger's sub_dir is judged there
            raise UserError(
                f"{path}={value}: it would write outside of the run's folder; leave it out, or, if you trust it, type "
                f"allow_targets={module}"
            )
    if _under(module, OWN):
        _check_kind(made, key, value, path)


def _check_kind(made: Any, key: str, value: Any, path: str) -> None:
    """Raises UserError where a plain value is of another kind than its parameter: later it would be a traceback."""
    hint = annotations.hints(made).get(key, Any)
    if isinstance(value, (bool, int, float, str, list, dict, type(None))) and not annotations.fits(value, hint):
        shown = value if isinstance(value, str) else json.dumps(value, default=str)  # as it is typed
        raise UserError(f"{path}={shown}: must be {annotations.told(hint)}")


def find(target: Any, path: str) -> Any:
    """What `target` names. Raises UserError where a config may not name it, or where there is no such thing."""
    return _find(str(target), path, allowed())


@lru_cache(maxsize=1024)
def _find(target: str, path: str, trusted: tuple[str, ...]) -> Any:
    if not _under(target, (*HOMES, *trusted)) or any(part.startswith("_") for part in target.split(".")[1:]):
        raise _refusal(target, path, target.partition(".")[0])
    try:
        found = get_object(target)
    except Exception as error:
        raise UserError(f"{path}._target_={target}: {' '.join(str(error).split())}") from error
    origin = str(getattr(found, "__module__", None))
    if _under(origin, trusted):
        return found
    if _under(origin, HOMES) and not _under(origin, CLOSED) and _is_part(found, origin):
        if _sends_away(origin):
            raise _sends(target, path, origin)
        return found
    name = getattr(found, "__qualname__", type(found).__name__)
    raise _refusal(target, path, origin, f" is {origin}.{name}" if f"{origin}.{name}" != target else "")


def sending(target: Any) -> str | None:
    """The module of a logger that sends what it is told to another machine; None for anything else."""
    if not _under(str(target), (LOGGERS,)):
        return None
    try:
        origin = str(get_object(str(target)).__module__)
    except Exception:  # there is no such thing: `find` says so
        return None
    return origin if _sends_away(origin) else None


def _sends_away(origin: str) -> bool:
    return _under(origin, (LOGGERS,)) and not _under(origin, STAYING)


def _under(name: str, homes: Iterable[str]) -> bool:
    return any(name == home or name.startswith(f"{home}.") for home in homes)


def _is_part(found: Any, origin: str) -> bool:
    """A class of one of the kinds, or a function of this package that returns one."""
    if inspect.isclass(found):
        return any(f"{base.__module__}.{base.__qualname__}" in KINDS for base in found.__mro__)
    if not inspect.isfunction(found) or "." in found.__qualname__ or not _under(origin, MAKERS):
        return False
    returned = get_type_hints(found).get("return")
    return origin == SCHEDULES or (inspect.isclass(returned) and _is_part(returned, origin))


def _sends(target: str, path: str, module: str) -> UserError:
    name = path.rpartition(".")[2]
    return UserError(
        f"{path}._target_={target}: it sends what a run logs to another machine, which only the command line can ask "
        f"for; type logger=[tensorboard,{name}] for a new run, allow_targets={module} to believe this config, or "
        f"{path}=null"
    )


def _refusal(target: str, path: str, module: str, what: str = "") -> UserError:
    return UserError(
        f"{path}._target_={target}{what}: a config may name only models, tasks, data, optimizers, callbacks, loggers "
        f"and metrics of lit_tfm, torch, lightning and torchmetrics; if you trust it, type allow_targets={module}"
    )
