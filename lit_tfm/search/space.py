"""What a sweep may try: the space of a sweep's yaml, drawn from by Optuna, and turned into words of the command line.

An entry's key is a key of the config (`model.d_model`) or a group (`optimizer`). An entry is one of

    {low: 64, high: 512, step: 64}          whole numbers; floats where one of them is; log: true
    {choices: [adamw, muon]}                one of these
    4 * model.d_model                       derived: arithmetic over other keys (expressions.py)
    divisors of model.d_model with head size in [32, 64, 128]
    {value: ENTRY, when: CONDITION}         also {low, high, when} and {choices, when}: only where the condition holds

**Choices that depend.** Optuna forbids that the choices of one name change from trial to trial. So what is drawn is the
head size, under a name of its own (`model.n_heads/head_size`, always the same choices), and the number of heads
follows: d_model / head size. A head size that does not divide d_model makes the configuration infeasible, and another
one is drawn. The sampler thus learns about head sizes across all widths, from one column without gaps.

**Branches.** An entry whose condition does not hold is not drawn and not set: the config keeps its own value. A
condition over a key that is itself not drawn does not hold.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from lit_tfm.errors import UserError, nearest
from lit_tfm.search.composer import Composer, word
from lit_tfm.search.entries import (
    Choice,
    Constant,
    Derived,
    Divisor,
    Entry,
    Number,
    as_json,
    name_of,
    normal,
    prefixed,
    read_entry,
    told,
)
from lit_tfm.search.expressions import Expression, is_number
from lit_tfm.search.keys import Keys

COSTS = ("parameters", "flops_per_token")
DRAWS = 200  # configurations looked at before a space is called infeasible
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass
class State:
    """The values of one configuration while its entries are gone through."""

    values: dict[str, Any] = field(default_factory=dict)
    inactive: set[str] = field(default_factory=set)


class Space:
    """The entries in an order in which each finds what it depends on; checked against the config they go into.

    Raises UserError for an entry that can't be read, an unknown key, a cycle, a value the config refuses.
    """

    def __init__(self, raw: Mapping[str, Any], composer: Composer, constraints: list[str] | tuple[str, ...] = ()):
        self.composer = composer
        self.vocab_size: int | None = None  # the real one, once it is known: costs are exact from then on
        self._costs = None
        if not isinstance(raw, Mapping) or not raw:
            raise UserError(
                "space: nothing to search; give keys of the config, e.g. optimizer.lr: {low: 1e-4, high: 1e-2}"
            )
        self._keys = Keys(raw, composer)
        entries = {str(key): read_entry(str(key), entry, self._keys) for key, entry in raw.items()}
        self.entries: dict[str, Entry] = _ordered(entries, composer)
        self.constraints = [_constraint(text, Keys(raw, composer, COSTS)) for text in constraints]
        self._check_keys()
        self._check_words()

    # ---- drawing -------------------------------------------------------------------------------------------------

    def sample(self, trial) -> dict[str, Any]:
        """Ask `trial` (Optuna's, or one like it) for every active entry; {Optuna's name: value}."""
        drawn: dict[str, Any] = {}

        def draw(entry: Entry) -> Any:
            drawn[name_of(entry)] = entry.draw(trial, name_of(entry))
            return drawn[name_of(entry)]

        self._walk(draw)
        return drawn

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The config keys a trial sets, derived ones included. Raises UserError where a parameter is missing."""

        def known(entry: Entry) -> Any:
            if name_of(entry) not in params:
                raise UserError(f"a trial without {name_of(entry)} is of another space; it has {', '.join(params)}")
            return params[name_of(entry)]

        return self._walk(known)

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """`values` as words of the command line."""
        return [word(key, value) for key, value in self.values(params).items()]

    def names(self) -> list[str]:
        """All names Optuna may come to know."""
        return [name_of(entry) for entry in self.entries.values() if not isinstance(entry, (Derived, Constant))]

    def conditional(self) -> list[str]:
        """Those that are drawn in some trials only."""
        return [name_of(e) for e in self.entries.values() if e.when and not isinstance(e, (Derived, Constant))]

    def _walk(self, parameter: Callable[[Entry], Any]) -> dict[str, Any]:
        state = State()
        for key, entry in self.entries.items():
            lookup = self._lookup(state)
            if entry.when is not None and not self._holds(entry.when, state):
                state.inactive.add(key)
            elif isinstance(entry, Derived):
                state.values[key] = prefixed(key, lambda e=entry, f=lookup: e.expression.evaluate(f))
            elif isinstance(entry, Constant):
                state.values[key] = entry.constant
            elif isinstance(entry, Divisor):
                state.values[key] = _divided(lookup(entry.of), parameter(entry))
            elif isinstance(entry, Choice):
                state.values[key] = entry.value(parameter(entry))
            else:
                state.values[key] = parameter(entry)
        return state.values

    def _holds(self, when: Expression, state: State) -> bool:
        return not state.inactive.intersection(when.names) and when.evaluate(self._lookup(state))

    def _lookup(self, state: State) -> Callable[[str], Any]:
        """The value drawn for a key, else the config's own."""

        def lookup(name: str) -> Any:
            if name in state.values:
                return state.values[name]
            return self._keys.value(name, self._chosen(state.values))

        return lookup

    def _chosen(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key in self.composer.groups}

    # ---- deciding ------------------------------------------------------------------------------------------------

    def feasible(self, params: Mapping[str, Any]) -> str | None:
        """None, or in words why the configuration can't be trained or breaks a constraint."""
        return self.why_not(self.values(params))

    def why_not(self, values: Mapping[str, Any]) -> str | None:
        for entry in self.entries.values():
            if isinstance(entry, Divisor) and isinstance(value := values.get(entry.key), float):
                return f"{entry.key}: {entry.of} is not divisible by the head size ({value:g} heads)"
        from lit_tfm.search.cost import Costs, model_config  # optional: torch, which reading needs not

        if self._costs is None or self._costs.vocab_size != self.vocab_size:
            self._costs = Costs(self.vocab_size)
        cfg = self.composer.compose(values)
        try:
            if hasattr(config := model_config(cfg), "check"):
                config.check()
        except UserError as error:
            return str(error)
        for constraint in self.constraints:
            if (broken := self._broken(constraint, cfg, values)) is not None:
                return broken
        return None

    def _broken(self, constraint: Expression, cfg: DictConfig, values: Mapping[str, Any]) -> str | None:
        def lookup(name: str) -> Any:
            if name in COSTS:
                return getattr(self._costs, name)(cfg)
            return values[name] if name in values else self._keys.value(name, self._chosen(values), cfg)

        if constraint.evaluate(lookup):
            return None
        return f"{constraint}: " + ", ".join(f"{name} is {_shown(lookup(name))}" for name in constraint.names)

    def check_feasible(self) -> None:
        """Raises UserError, with what stands most in the way, where no configuration of `DRAWS` is feasible."""
        draw, reasons, nearest_one = Draw(0), Counter(), {}
        for _ in range(DRAWS):
            values = self.values(self.sample(draw))
            try:
                reason = self.why_not(values)
            except UserError as error:
                options = ", ".join(f"{key}={value}" for key, value in self._chosen(values).items())
                raise UserError(f"{error}{f' (drawn with {options}; see when:)' if options else ''}") from error
            if reason is None:
                return
            kind = next((str(c) for c in self.constraints if reason.startswith(f"{c}: ")), _NUMBER.sub("N", reason))
            reasons[kind] += 1
            nearest_one[kind] = _nearer(kind, nearest_one.get(kind, reason), reason)
        worst, times = reasons.most_common(1)[0]
        raise UserError(
            f"space: none of {DRAWS} configurations drawn is feasible; {times} of them break {worst!r} "
            f"(nearest: {nearest_one[worst].removeprefix(worst).lstrip(': ')}); widen the space or the constraint"
        )

    # ---- checking ------------------------------------------------------------------------------------------------

    def _check_keys(self) -> None:
        """The config takes each key, and the ends of its range, with every option of groups it may be set with."""
        for key, entry in self.entries.items():
            combinations = list(self._combinations(key))
            errors = [self._refused(key, chosen) for chosen in combinations]
            if all(errors):
                raise errors[0]
            if any(errors) and entry.when is None:
                group = key.partition(".")[0]
                works = next(chosen[group] for chosen, error in zip(combinations, errors, strict=True) if not error)
                error = next(filter(None, errors))
                raise UserError(
                    f"space.{key}: {error}; set it only where it belongs: {{..., when: {group} == {works}}}"
                )

    def _combinations(self, key: str) -> Iterator[dict[str, Any]]:
        """Options of the group that holds `key`, where the space chooses it; else the experiment's own."""
        group = key.partition(".")[0]
        entry = self.entries.get(group)
        if key == group or not isinstance(entry, (Choice, Constant)):
            return iter([{}])
        options = entry.choices if isinstance(entry, Choice) else (entry.constant,)
        return iter([{group: option} for option in options])

    def _refused(self, key: str, chosen: dict[str, Any]) -> UserError | None:
        entry = self.entries[key]
        ends = [entry.low, entry.high] if isinstance(entry, Number) else getattr(entry, "choices", ())
        try:
            if key in self.composer.groups:
                for option in ends or [getattr(entry, "constant", None)]:
                    self.composer.base({key: option})
                return None
            self.composer.check_key(key, chosen)
            for value in ends:
                self.composer.compose({**chosen, key: value})
        except UserError as error:
            return error
        return None

    def _check_words(self) -> None:
        """A condition compares a key with values it can have."""
        for entry in [*self.entries.values()]:
            for key, value in entry.when.literals if entry.when else []:
                self._check_word(entry, key, value)

    def _check_word(self, entry: Entry, key: str, value: Any) -> None:
        other = self.entries.get(key)
        if isinstance(other, Choice):
            allowed = [*other.choices]
        elif isinstance(other, Constant):
            allowed = [other.constant]
        elif other is None and key in self.composer.groups:
            allowed = self.composer.options(key)
        elif other is not None and not is_number(value):
            raise UserError(f"space.{entry.key}: when: {entry.when}: {key} is a number, {value} is none")
        else:
            return
        if is_number(value) and all(map(is_number, allowed)):
            return  # compared by size perhaps
        if value not in allowed:
            near = nearest(str(value), map(str, allowed))
            raise UserError(
                f"space.{entry.key}: when: {entry.when}: {key} is never {value}{near or '; it can be '}"
                f"{'' if near else ', '.join(map(str, allowed))}"
            )

    # ---- telling apart -------------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that differ where two spaces do; the order of keys and the way of writing don't count."""
        entries = {f"space.{key}": told(entry) for key, entry in sorted(self.entries.items())}
        return {**entries, "constraints": sorted(map(normal, self.constraints))}

    @staticmethod
    def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        """One line a difference of two fingerprints: `space.optimizer.lr: {...} -> {...}`."""
        lines = []
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in new:
                lines.append(f"{key}: {as_json(old[key])} -> not there")
            elif key not in old:
                lines.append(f"{key}: not there -> {as_json(new[key])}")
            elif as_json(old[key]) != as_json(new[key]):
                lines.append(f"{key}: {as_json(old[key])} -> {as_json(new[key])}")
        return lines


# ---- order ----------------------------------------------------------------------------------------------------------


def _constraint(text: Any, keys: Keys) -> Expression:
    try:
        return Expression(text, keys, condition=True)
    except UserError as error:
        raise UserError(f"constraints: {error}") from error


def _ordered(entries: dict[str, Entry], composer: Composer) -> dict[str, Entry]:
    """Each after those it reads; otherwise groups first, then as written. Raises UserError for a cycle."""
    left = dict(sorted(entries.items(), key=lambda item: item[0] not in composer.groups))
    done: dict[str, Entry] = {}
    while left:
        ready = next((key for key, entry in left.items() if not _needs(entry, left)), None)
        if ready is None:
            raise UserError(f"space: {_cycle(left)}: each needs the other; break the cycle")
        done[ready] = left.pop(ready)
    return done


def _needs(entry: Entry, keys: Mapping[str, Entry]) -> list[str]:
    """The keys of `keys` that the entry reads, or on whose group what it reads depends."""
    names = [*(entry.when.names if entry.when else ())]
    names += entry.expression.names if isinstance(entry, Derived) else [entry.of] if isinstance(entry, Divisor) else []
    needed = [name for name in names if name in keys]
    return needed + [group for name in names if "." in name and (group := name.partition(".")[0]) in keys]


def _cycle(left: dict[str, Entry]) -> str:
    path = [next(iter(left))]
    while path.count(path[-1]) < 2:
        path.append(_needs(left[path[-1]], left)[0])
    return " -> ".join(path[path.index(path[-1]) :])


def _divided(number: Any, size: int) -> float:
    """Whole where it divides; `why_not` refuses the rest."""
    if not is_number(number):
        raise UserError(f"{number!r} can't be divided into heads of {size}")
    return number // size if number % size == 0 else number / size


def _shown(value: Any) -> str:
    if not is_number(value):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _nearer(constraint: str, one: str, other: str) -> str:
    """Of two that break a constraint, the one that breaks it least, by the last number told."""
    numbers = [float((_NUMBER.findall(reason) or ["0"])[-1].replace(",", "")) for reason in (one, other)]
    closer = numbers[1] > numbers[0] if ">" in constraint else numbers[1] < numbers[0]
    return other if closer else one


class Draw:
    """A trial that draws by itself, for looking at a space without a study."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if log:
            return min(high, max(low, round(self.suggest_float(name, low, high, log=True))))
        return self._random.randrange(low, high + 1, step)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if log:
            return low * (high / low) ** self._random.random()
        if step is not None:
            return low + step * self._random.randrange(round((high - low) / step) + 1)
        return self._random.uniform(low, high)

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return self._random.choice(choices)
