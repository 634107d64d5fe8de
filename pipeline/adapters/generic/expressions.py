"""Whole numbers written as arithmetic over sizes: ``keys - latent_rows * latent_columns // 4``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator

LONGEST = 200
"""Characters of an expression."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_EXPECTED = "a whole number, or names of sizes with + - * // % ( ) and [index]"


@lru_cache
def _parsed(text: str) -> ast.expr:
    """The syntax tree of an expression that holds nothing but what is known here."""
    try:
        if len(text) > LONGEST:
            raise ValueError
        tree = ast.parse(text.strip(), mode="eval").body
        _check(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(_EXPECTED) from None
    return tree


def _check(node: ast.expr) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check(node.operand)
    elif isinstance(node, ast.Subscript):
        _check(node.value)
        if not (isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)):
            _check(node.slice)
    elif not (isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and type(node.value) is int)):
        raise ValueError


def evaluate(text: str, sizes: Mapping[str, Any]) -> int:
    """The number that an expression stands for, among ``sizes`` by name.

    Raises ValueError with what is unknown, or not a whole number.
    """
    found = _value(_parsed(text), sizes)
    if not isinstance(found, int):
        raise ValueError(f"{text!r} is no number")
    return found


def _value(node: ast.expr, sizes: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in sizes:
            raise ValueError(f"there is no {node.id!r} among {', '.join(sizes)}")
        return sizes[node.id]
    if isinstance(node, ast.Subscript):
        whole, index = _value(node.value, sizes), _value(node.slice, sizes)
        try:
            return whole[index]
        except (TypeError, LookupError):
            raise ValueError(f"{ast.unparse(node)!r} does not exist") from None
    operands = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.operand]  # type: ignore[attr-defined]
    numbers = [_value(operand, sizes) for operand in operands]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"a part of {ast.unparse(node)!r} is no number")
    if isinstance(node, ast.UnaryOp):
        return -numbers[0]
    if not numbers[1] and isinstance(node.op, ast.FloorDiv | ast.Mod):  # type: ignore[attr-defined]
        raise ValueError(f"{ast.unparse(node)!r} divides by 0")
    return _OPERATORS[type(node.op)](*numbers)  # type: ignore[attr-defined]


def _checked(text: str) -> str:
    _parsed(text)
    return text


def _range(text: str) -> str:
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ValueError("a range of tokens such as 0:16, 77: or -keys//2::2")
    for part in filter(str.strip, parts):
        _parsed(part)
    return text


def _text(value: Any) -> Any:
    return str(value) if type(value) is int else value


Number: TypeAlias = Annotated[str, BeforeValidator(_text), AfterValidator(_checked)]
"""An expression."""

TokenRange: TypeAlias = Annotated[str, AfterValidator(_range)]
"""``start:stop`` or ``start:stop:step`` of expressions, as Python's slices; none lies outside the tokens."""


def positions(text: str, tokens: int, sizes: Mapping[str, Any]) -> range:
    """The tokens of a range, of so many in all."""
    start, stop, step = (
        evaluate(part, sizes) if part.strip() else None for part in (text + ":::").split(":")[:3]
    )
    if step is not None and step < 1:
        raise ValueError(f"the step of {text!r} is {step}")
    for number in (start, stop):
        if number is not None and not -tokens <= number <= tokens:
            raise ValueError(f"{number}, in {text!r}, is outside {tokens} tokens")
    return range(tokens)[start:stop:step]
