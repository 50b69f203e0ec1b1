"""Optuna's samplers and pruners: made from a sweep's yaml, and refused where they can't do the space.

Several samplers fall back to random draws, silently, for what they can't do; here that is an error.
"""

import importlib.util
import inspect
import io
import math
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from lit_tfm.errors import UserError, nearest
from lit_tfm.search.entries import Choice, Divisor, Entry, Number, label, name_of
from lit_tfm.search.space import Space

GRID = "optuna.samplers.GridSampler"
LARGEST_GRID = 10_000  # points
NUMBERS_ONLY = ("CmaEsSampler", "QMCSampler")
NO_BRANCHES = (*NUMBERS_ONLY, "GPSampler", "GridSampler")
PACKAGES = {"CmaEsSampler": "cmaes", "GPSampler": "scipy", "QMCSampler": "scipy", "WilcoxonPruner": "scipy"}
INSTEAD = "type sampler._target_=optuna.samplers.TPESampler (or RandomSampler)"


def build(node: Mapping[str, Any], what: str, usual: Mapping[str, Any]) -> Any:
    """The sampler or pruner (`what`) that `node` names, given `usual` where it takes that and is not told otherwise.

    Raises UserError for anything but a class of optuna.samplers or optuna.pruners, and for what that does not take.
    """
    kind = _class(str(node.get("_target_", "")), what)
    given = {str(key): value for key, value in node.items() if key != "_target_"}
    given = {key: build(value, what, {}) if _is_node(value) else value for key, value in given.items()}
    parameters = inspect.signature(kind).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    given = {**{key: value for key, value in usual.items() if key in names}, **given}
    for key in given:
        if key not in names:
            takes = ", ".join(names) or "nothing"
            raise UserError(f"{what}.{key}: no such key{nearest(key, names)}; {node['_target_']} takes {takes}")
    missing = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in given]
    if missing:
        raise UserError(f"{what}: {node['_target_']} needs {', '.join(missing)}; type {what}.{missing[0]}=...")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return (CmaEs if kind is optuna.samplers.CmaEsSampler else kind)(**given)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{what}: {node['_target_']}: {' '.join(str(error).split())}") from error


class CmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's own keeps its state in the study as a pickle, and a study may be somebody else's."""

    def _restore_optimizer(self, completed_trials: list[optuna.trial.FrozenTrial]) -> Any:
        """What the latest trial that has a state holds, None where none does. Raises UserError for another pickle."""
        for trial in reversed(completed_trials):
            parts = {k: str(v) for k, v in trial.system_attrs.items() if k.startswith(self._attr_key_optimizer)}
            if not parts:
                continue
            try:
                return _Unpickler(io.BytesIO(bytes.fromhex(self._concat_optimizer_attrs(parts)))).load()
            except Exception as error:  # bytes from anywhere
                raise UserError(
                    f"trial {trial.number} of the study holds no state of CmaEsSampler ({error}); it was not executed; "
                    "start another sweep with output_dir="
                ) from error
        return None


class _Unpickler(pickle.Unpickler):
    """Of what a CMA-ES optimizer is made of, and nothing else."""

    MODULES = {
        "cmaes._cma",
        "cmaes._sepcma",
        "cmaes._cmawm",
        "numpy",
        "numpy._core.multiarray",
        "numpy.core.multiarray",
    }
    NAMES = {"CMA", "SepCMA", "CMAwM", "_reconstruct", "scalar", "ndarray", "dtype"}

    def find_class(self, module: str, name: str) -> Any:
        if module in self.MODULES and name in self.NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _class(target: str, what: str) -> type:
    module = getattr(optuna, f"{what}s")
    front, _, name = target.rpartition(".")
    known = [n for n in module.__all__ if inspect.isclass(getattr(module, n)) and not n.startswith("Base")]
    if front != f"optuna.{what}s" or name not in known:
        near = nearest(name, known)
        raise UserError(f"{what}._target_={target}: must be optuna.{what}s.NAME{near}; there is {', '.join(known)}")
    if (package := PACKAGES.get(name)) and importlib.util.find_spec(package) is None:
        raise UserError(f"{name} needs the package {package}: pip install {package}")
    return getattr(module, name)


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def check_sampler(target: str, space: Space, objectives: int) -> None:
    """Raises UserError where the sampler can't do the space."""
    entries = [entry for entry in space.entries.values() if isinstance(entry, (Number, Choice, Divisor))]
    if not entries:
        raise UserError("space: nothing is drawn, all entries are derived; give one {low, high} or {choices}")
    name = target.removeprefix("optuna.samplers.")
    choices = [entry.key for entry in entries if not isinstance(entry, Number)]
    endless = [entry.key for entry in entries if _endless(entry)]
    if name == "PartialFixedSampler":
        raise UserError(f"PartialFixedSampler: what stays the same goes to fixed; {INSTEAD}")
    if name in NUMBERS_ONLY and choices:
        raise UserError(f"{name} draws numbers only, and {choices[0]} is a choice; {INSTEAD}")
    if name in NO_BRANCHES and space.conditional():
        raise UserError(f"{name} can't do branches, and {space.conditional()[0]} has a when; {INSTEAD}")
    if name == "CmaEsSampler" and objectives > 1:
        raise UserError(f"CmaEsSampler does one objective, and metric names {objectives}; {INSTEAD}")
    if name in ("BruteForceSampler", "GridSampler") and endless:
        raise UserError(
            f"{name} tries everything, and {endless[0]} is continuous; give it a step or choices, or {INSTEAD}"
        )


def _endless(entry: Entry) -> bool:
    return isinstance(entry, Number) and isinstance(entry.low, float) and entry.step is None


def grid(space: Space) -> dict[str, list[Any]]:
    """GridSampler's own description of a space without branches: every value of every name."""
    drawn = [entry for entry in space.entries.values() if isinstance(entry, (Number, Choice, Divisor))]
    counts = [_count(entry) for entry in drawn]
    if math.prod(counts) > LARGEST_GRID:
        raise UserError(f"GridSampler: {math.prod(counts):,} points, more than {LARGEST_GRID:,}; {INSTEAD}")
    return {name_of(entry): _points(entry) for entry in drawn}


def _count(entry: Entry) -> int:
    if isinstance(entry, Number):
        return round((entry.high - entry.low) / (entry.step or 1)) + 1
    return len(entry.choices if isinstance(entry, Choice) else entry.sizes)


def _points(entry: Entry) -> list[Any]:
    if isinstance(entry, Choice):
        return [label(choice) for choice in entry.choices]
    if isinstance(entry, Divisor):
        return list(entry.sizes)
    return [entry.low + i * (entry.step or 1) for i in range(_count(entry))]
