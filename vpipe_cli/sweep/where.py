"""``--where 'recompute_ratio < 1 or stages > 2'``: a small language, walked as a tree, never evaluated as code.

Python's parser reads it; every kind of node that is not named here is refused. There are no attributes, no calls but a
few functions of numbers and lists, no powers and no repeated lists, so that nothing long or large can be asked for.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from worker.errors import UsageError

LONGEST = 1000
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "all": all, "any": any, "len": len, "max": max, "min": min, "sum": sum,
}  # fmt: skip
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many, ast.NotIn: lambda one, many: one not in many,
}  # fmt: skip
_UNARY: dict[type, Callable[[Any], Any]] = {ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos}
CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


class Where:
    """A condition on keys. ``names`` are the keys it asks for, as written."""

    def __init__(self, text: str) -> None:
        """Read it. Raises UsageError with the column of what cannot stand there."""
        self.text = text
        self.names: set[str] = set()
        if len(text) > LONGEST:
            raise UsageError(f"--where is longer than {LONGEST} characters")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
            self._check(self._tree)
        except SyntaxError as error:
            place = f" at column {error.offset}" if error.offset else ""
            hint = "write it like: --where 'recompute_ratio < 1 and partition[0] > 4'"
            raise UsageError(f"--where {text!r}: {error.msg}{place}", hint) from None
        except (ValueError, RecursionError, MemoryError):
            raise UsageError(f"--where {text[:60]!r} cannot be read") from None

    def __call__(self, value_of: Callable[[str], Any]) -> bool:
        """Whether it holds. ``value_of`` gives the value of a key. Raises UsageError where it cannot be worked out."""
        try:
            return bool(self._value(self._tree, value_of))
        except (TypeError, ArithmeticError, IndexError, ValueError, RecursionError) as error:
            values = ", ".join(f"{name} = {value_of(name)!r}" for name in sorted(self.names))
            raise UsageError(f"--where {self.text!r} cannot be worked out for {values}: {error}") from None

    def _check(self, node: ast.AST) -> None:
        """Refuse every node that is not of this language."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return
            case ast.Name() | ast.Attribute():
                name = _dotted(node)
                if name not in CONSTANTS:
                    self.names.add(name)
                return
            case ast.BoolOp() | ast.List() | ast.Tuple():
                pass
            case ast.UnaryOp() if type(node.op) in _UNARY:
                pass
            case ast.BinOp() if type(node.op) in _BINARY:
                pass
            case ast.Compare() if all(type(each) in _COMPARE for each in node.ops):
                pass
            case ast.Subscript() | ast.Slice():
                pass
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                for argument in node.args:
                    self._check(argument)
                return
            case _:
                raise _refused(node, self.text)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr | ast.Slice):
                self._check(child)

    def _value(self, node: ast.AST | None, value_of: Callable[[str], Any]) -> Any:
        match node:
            case None:
                return None
            case ast.Constant():
                return node.value
            case ast.Name() | ast.Attribute():
                name = _dotted(node)
                return CONSTANTS[name] if name in CONSTANTS else value_of(name)
            case ast.BoolOp():
                wanted = isinstance(node.op, ast.Or)
                return next((wanted for each in node.values if bool(self._value(each, value_of)) is wanted), not wanted)
            case ast.UnaryOp():
                return _UNARY[type(node.op)](self._value(node.operand, value_of))
            case ast.BinOp():
                return _BINARY[type(node.op)](
                    _number(self._value(node.left, value_of)), _number(self._value(node.right, value_of))
                )
            case ast.Compare():
                return self._compare(node, value_of)
            case ast.List() | ast.Tuple():
                return [self._value(each, value_of) for each in node.elts]
            case ast.Slice():
                return slice(*(self._value(each, value_of) for each in (node.lower, node.upper, node.step)))
            case ast.Subscript():
                return self._value(node.value, value_of)[self._value(node.slice, value_of)]
            case ast.Call(func=ast.Name(id=name)):
                return FUNCTIONS[name](*(self._value(each, value_of) for each in node.args))
        raise _refused(node, self.text)

    def _compare(self, node: ast.Compare, value_of: Callable[[str], Any]) -> bool:
        left = self._value(node.left, value_of)
        for operation, each in zip(node.ops, node.comparators, strict=True):
            right = self._value(each, value_of)
            if not _COMPARE[type(operation)](left, right):
                return False
            left = right
        return True


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted path of nested mappings. Raises KeyError."""
    here: Any = values
    for part in key.split("."):
        if not isinstance(here, Mapping):
            raise KeyError(key)
        here = here[part]
    return here


def _number(value: Any) -> int | float:
    if isinstance(value, int | float):
        return value
    raise TypeError(f"{value!r} is not a number")


def _dotted(node: ast.AST) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{_dotted(node.value)}.{node.attr}"
    raise SyntaxError("only keys have parts with a dot")


def _refused(node: ast.AST, text: str) -> UsageError:
    part = ast.get_source_segment(text.strip(), node) if isinstance(node, ast.expr) else None
    what = f"`{part}`" if part else "this"
    hint = f"there are and, or, not, in, comparisons, + - * / // %, lists, and {', '.join(FUNCTIONS)}"
    return UsageError(f"--where {text!r}: {what} is not part of the language of conditions", hint)
