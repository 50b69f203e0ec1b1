"""Which runs are meant: `val/loss < 4 and optimizer == adamw`. A small language of its own; nothing is executed.

    expression   part or part and not part, ( ... )
    part         name < number, also <= > >= == != ;  name in [adamw, muon] ;  name not in [1, 2] ;  name alone: true
    name         a column of the table (val/loss, best/val/loss, tokens, status, run), or a setting (model.d_model;
                 d_model where that is clear)
    value        12, 3e-4, 30M, adamw, 'two words', true, false, null; behind == also another name

A comparison with what a run does not have is neither true nor false, and so is its negation: the run does not pass.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from lit_tfm.errors import UserError, nearest

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'[^']*'|"[^"]*")|(?P<sign><=|>=|==|!=|<|>|=|\(|\)|\[|\]|,)|(?P<word>[^\s<>=!()\[\],'"]+))"""
)
_NUMBER = re.compile(r"^([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([kMGT]?)$")
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
Look = Callable[[str], Any]  # a name -> the run's value; KeyError where it has none
Test = Callable[[Look], bool | None]  # None: not known
Operand = Callable[[Look], Any]


class Where:
    """`Where("val/loss<4", names)(look) -> bool`; `names` are those used. Raises UserError for what it can't read."""

    def __init__(self, expression: str, known: Iterable[str]) -> None:
        self.expression, self.known = expression, list(known)
        self.names: list[str] = []
        self.tokens = self._split()
        self.at = 0
        self._test = self._either()
        if self.at < len(self.tokens):
            raise self._mistake(f"what is {self.tokens[self.at][1]!r} doing there?")

    def __call__(self, look: Look) -> bool:
        return bool(self._test(look))

    def _mistake(self, why: str) -> UserError:
        return UserError(f"--where {self.expression!r}: {why}; type e.g. --where 'val/loss < 4 and optimizer == adamw'")

    def _split(self) -> list[tuple[str, str]]:
        tokens, at, text = [], 0, self.expression.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise self._mistake(f"{text[at:].strip()[:20]!r} can't be read")
            tokens.append((found.lastgroup, found.group(found.lastgroup)))
            at = found.end()
        if not tokens:
            raise self._mistake("nothing is asked")
        return tokens

    def _next(self, *values: str) -> str | None:
        """The next word or sign, if it is one of these."""
        if self.at < len(self.tokens):
            kind, value = self.tokens[self.at]
            if kind != "text" and value in values:
                self.at += 1
                return value
        return None

    # ---- grammar, from loose to tight ------------------------------------------------------------------------------

    def _either(self) -> Test:
        parts = [self._both()]
        while self._next("or"):
            parts.append(self._both())
        return lambda look: _joined([part(look) for part in parts], decisive=True)

    def _both(self) -> Test:
        parts = [self._not()]
        while self._next("and"):
            parts.append(self._not())
        return lambda look: _joined([part(look) for part in parts], decisive=False)

    def _not(self) -> Test:
        if self._next("not"):
            inner = self._not()
            return lambda look: None if (answer := inner(look)) is None else not answer
        if self._next("("):
            inner = self._either()
            if not self._next(")"):
                raise self._mistake("a ) is missing")
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        left = self._operand(first=True)
        if sign := self._next("<", "<=", ">", ">="):
            right = self._operand()
            return _known(lambda look: _ordered(sign, left(look), right(look)))
        if sign := self._next("==", "=", "!="):
            right = self._operand()
            return _known(lambda look: _same(left(look), right(look)) == (sign != "!="))
        negated = bool(self._next("not"))
        if self._next("in"):
            options = self._options()
            return _known(lambda look: any(_same(left(look), option) for option in options) != negated)
        if negated:
            raise self._mistake("'in' has to follow 'not'")
        return _known(lambda look: bool(left(look)))

    def _options(self) -> list[Any]:
        close = {"[": "]", "(": ")"}.get(self._next("[", "(") or "")
        if close is None:
            raise self._mistake("behind 'in' stands a list: [adamw, muon]")
        options = [self._literal()]
        while self._next(","):
            options.append(self._literal())
        if not self._next(close):
            raise self._mistake(f"a {close} is missing")
        return options

    def _operand(self, first: bool = False) -> Operand:
        """A name's value, or a constant. Left of a sign a word must be a name, right of it it may be a text."""
        kind, text = self._take()
        if kind == "word" and not _NUMBER.match(text) and text.lower() not in _CONSTANTS:
            name = resolve(text, self.known)
            if name is not None:
                self.names.append(name)
                return lambda look: look(name)
            if first:
                raise unknown(f"--where {self.expression!r}", text, self.known)
        value = _value(kind, text)
        return lambda look: value

    def _literal(self) -> Any:
        return _value(*self._take())

    def _take(self) -> tuple[str, str]:
        if self.at >= len(self.tokens):
            raise self._mistake("it ends too early")
        kind, text = self.tokens[self.at]
        if kind == "sign":
            raise self._mistake(f"{text!r} stands where a name or a value should")
        self.at += 1
        return kind, text


def resolve(name: str, known: Iterable[str]) -> str | None:
    """The known name that is meant: itself, or the only one that ends in `.name`."""
    known = list(known)
    if name in known:
        return name
    ending = [k for k in known if k.endswith(f".{name}")]
    return ending[0] if len(ending) == 1 else None


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    known = list(known)
    several = [k for k in known if k.endswith(f".{name}")]
    if several:
        return UserError(f"{what}: {name} may be {' or '.join(several)}; type the whole name")
    leaves = [k.rpartition(".")[2] for k in known]
    near = nearest(name, known) or nearest(name, leaves)
    metrics = [k for k in known if "/" in k and not k.startswith("best/")]
    there = f"metrics are {', '.join(metrics[:12])}" if metrics else "type a setting, e.g. optimizer.lr"
    return UserError(f"{what}: no run has {name}{near or f'; {there}'}")


def _value(kind: str, text: str) -> Any:
    if kind == "text":
        return text[1:-1]
    if found := _NUMBER.match(text):
        return float(found.group(1)) * _UNITS[found.group(2)]
    return _CONSTANTS.get(text.lower(), text)


def _known(test: Test) -> Test:
    def answered(look: Look) -> bool | None:
        try:
            return test(look)
        except KeyError:
            return None

    return answered


def _joined(answers: list[bool | None], decisive: bool) -> bool | None:
    """One true decides an `or`, one false an `and`, whatever the others are."""
    return decisive if decisive in answers else None if None in answers else not decisive


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and isinstance(a, bool) == isinstance(b, bool):
        return float(a) == float(b)
    return a is b if a is None or b is None else str(a) == str(b)


def _ordered(sign: str, a: Any, b: Any) -> bool:
    numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in (a, b)]
    return all(numbers) and _ORDERED[sign](a, b)
