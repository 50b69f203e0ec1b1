"""Arithmetic and conditions in a sweep's yaml: `4 * model.d_model`, `optimizer == adamw and model.n_layers > 4`.

A text is parsed into Python's syntax tree and only numbers, words, names of keys, comparisons and a few operations are
followed there; nothing is ever compiled or executed, and no value grows past `LARGEST`.
"""

import ast
import math
import operator
from collections.abc import Callable, Container, Iterable
from typing import Any

from lit_tfm.errors import UserError, nearest

LARGEST = 1e18
LARGEST_EXPONENT = 64
LONGEST = 500  # characters
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARISONS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
FUNCTIONS = {"min": min, "max": max, "round": round, "int": int}
WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}

Lookup = Callable[[str], Any]


class Expression:
    """A parsed text. `names` are the keys it reads; `evaluate(lookup)` gives its value.

    `keys` tells which words name a key. A dotted word always does, and any word in arithmetic; a single word that is
    no key and stands beside a comparison (`optimizer == adamw`) is a text.
    Raises UserError for what is not in the language, and for an unknown key with the nearest spelling.
    """

    def __init__(self, text: Any, keys: Container[str], condition: bool = False) -> None:
        self.text = str(text)
        self._keys, self._condition = keys, condition
        self.names: list[str] = []
        self.literals: list[tuple[str, Any]] = []  # (key, value it is compared with)
        try:
            self._tree = self._parsed()
            self._check(self._tree, condition)
        except RecursionError:
            raise self._error("nested too deeply") from None
        if condition and not self.names:
            raise self._error(f"names no key; a condition compares keys, e.g. optimizer == adamw{self._near()}")

    def evaluate(self, lookup: Lookup) -> Any:
        """A number (whole where it is integral), or the truth of a condition; a key alone gives its value as it is.

        `lookup(name)` gives a key's value. Raises UserError for what can't be computed from it.
        """
        value = self._value(self._tree, lookup)
        return bool(value) if self._condition else whole(value)

    def __str__(self) -> str:
        return self.text

    # ---- reading -------------------------------------------------------------------------------------------------

    def _parsed(self) -> ast.expr:
        if len(self.text) > LONGEST:
            raise self._error(f"longer than {LONGEST} characters")
        try:
            return ast.parse(" ".join(self.text.split()), mode="eval").body
        except (SyntaxError, ValueError, MemoryError):
            raise self._error("can't be read; type e.g. 4 * model.d_model, or optimizer == adamw") from None

    def _check(self, node: ast.expr, condition: bool = False) -> None:
        """Every node is of the language; names are collected. `condition`: whether a truth is wanted here."""
        if isinstance(node, ast.Compare) and self._condition:
            self._check_comparison(node)
        elif isinstance(node, ast.BoolOp) and condition:
            for value in node.values:
                self._check(value, condition=True)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and condition:
            self._check(node.operand, condition=True)
        elif condition:
            raise self._error("must be a comparison, e.g. optimizer == adamw")
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            self._check(node.left)
            self._check(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            self._check(node.operand)
        elif isinstance(node, ast.Call):
            self._check_call(node)
        elif (word := dotted(node)) is not None:
            self._refer(word)
        elif not (isinstance(node, ast.Constant) and is_number(node.value) and node.value <= LARGEST):
            raise self._error("only numbers, keys, + - * / // % **, min, max, round and int may stand in it")

    def _check_call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if name not in FUNCTIONS or node.keywords or starred or not node.args:
            raise self._error(f"only the functions {', '.join(FUNCTIONS)} may be called")
        if name in ("round", "int") and len(node.args) > 1:
            raise self._error(f"{name} takes one number")
        for argument in node.args:
            self._check(argument)

    def _check_comparison(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for op in node.ops:
            if type(op) not in COMPARISONS:
                raise self._error("only == != < <= > >= and in compare")
        for op, side in zip([None, *node.ops], sides, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)) and not isinstance(side, (ast.List, ast.Tuple)):
                raise self._error("`in` needs a list, e.g. optimizer in [adamw, lion]")
        values = []
        for side in sides:
            found = self._literal(side)
            if found is None:
                self._check(side)
            else:
                values += found
        keys = [word for side in sides if (word := dotted(side)) is not None and word in self._keys]
        self.literals += [(key, value) for key in keys for value in values]

    def _literal(self, node: ast.expr) -> list[Any] | None:
        """The plain values that stand here; None for anything that has to be computed."""
        if isinstance(node, (ast.List, ast.Tuple)):
            found = [None if isinstance(item, (ast.List, ast.Tuple)) else self._literal(item) for item in node.elts]
            if not found or None in found:
                raise self._error("a list holds words and numbers, at least one")
            return [item[0] for item in found]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return [-node.operand.value] if is_number(node.operand.value) else None
        if isinstance(node, ast.Constant) and (is_number(node.value) or isinstance(node.value, (str, bool))):
            return [node.value]
        if isinstance(node, ast.Name) and node.id not in self._keys:
            return [WORDS.get(node.id, node.id)]
        return None

    def _refer(self, word: str) -> None:
        if word not in self._keys:
            raise self._error(f"{word} is no key{nearest(word, iterate(self._keys))}")
        if word not in self.names:
            self.names.append(word)

    def _near(self) -> str:
        words = [word for node in ast.walk(self._tree) if (word := dotted(node)) is not None]
        return next((near for word in words if (near := nearest(word, iterate(self._keys)))), "")

    # ---- computing -----------------------------------------------------------------------------------------------

    def _value(self, node: ast.expr, lookup: Lookup) -> Any:
        if isinstance(node, ast.BoolOp):
            quantifier = all if isinstance(node.op, ast.And) else any
            return quantifier(self._value(value, lookup) for value in node.values)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._value(node.operand, lookup)
        if isinstance(node, ast.Compare):
            return self._compared(node, lookup)
        if (word := dotted(node)) is not None and word in self._keys:
            return lookup(word)
        if (literal := self._literal(node)) is not None:
            return literal if isinstance(node, (ast.List, ast.Tuple)) else literal[0]
        if isinstance(node, ast.UnaryOp):
            value = self._number(node.operand, lookup)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call):
            return self._bounded(FUNCTIONS[node.func.id], [self._number(a, lookup) for a in node.args])
        return self._arithmetic(node, lookup)

    def _arithmetic(self, node: ast.BinOp, lookup: Lookup) -> float:
        left, right = self._number(node.left, lookup), self._number(node.right, lookup)
        if isinstance(node.op, ast.Pow) and abs(right) > LARGEST_EXPONENT:
            raise self._error(f"an exponent of {right:g}; at most {LARGEST_EXPONENT}")
        return self._bounded(ARITHMETIC[type(node.op)], [left, right])

    def _bounded(self, function: Callable, numbers: list[float]) -> float:
        try:
            value = function(*numbers) if function not in (min, max) or len(numbers) > 1 else numbers[0]
        except ZeroDivisionError:
            raise self._error("divides by zero") from None
        except (OverflowError, ValueError):
            raise self._error("grows without bound") from None
        if isinstance(value, complex) or not -LARGEST <= value <= LARGEST:
            raise self._error("gives a number beyond 1e18 (or none that is real)")
        return value

    def _number(self, node: ast.expr, lookup: Lookup) -> float:
        value = self._value(node, lookup)
        if not is_number(value):
            what = dotted(node)
            raise self._error(f"{what + ' is ' if what else ''}{value!r}, no number")
        return value

    def _compared(self, node: ast.Compare, lookup: Lookup) -> bool:
        left = self._value(node.left, lookup)
        for op, side in zip(node.ops, node.comparators, strict=True):
            right = self._value(side, lookup)
            try:
                if not COMPARISONS[type(op)](left, right):
                    return False
            except TypeError:
                raise self._error(f"{left!r} and {right!r} can't be compared") from None
            left = right
        return True

    def _error(self, reason: str) -> UserError:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}..."
        return UserError(f"{shown!r}: {reason}")


def dotted(node: ast.expr) -> str | None:
    """`model.d_model` for a name or a chain of attributes of one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (front := dotted(node.value)) is not None:
        return f"{front}.{node.attr}"
    return None


def is_number(value: Any) -> bool:
    """Finite, and not true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def whole(value: Any) -> Any:
    """512.0 -> 512: a config asks for whole numbers where division gave a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def iterate(keys: Container[str]) -> Iterable[str]:
    return keys if isinstance(keys, Iterable) else ()
