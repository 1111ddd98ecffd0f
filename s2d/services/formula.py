"""The arithmetic that joins the scores of a grader's parts: `0.8 * answer + 0.2 * max(style, 0.5)`.

Read as a syntax tree of which only numbers, names, operators and a few functions are allowed, and computed in floats.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping

MAX_CHARS = 256

Scores = Mapping[str, float]
#: Scores to value. Raises ArithmeticError where there is none, or none that is finite.
Formula = Callable[[Scores], float]

_OPERATORS: dict[type[ast.operator] | type[ast.unaryop], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    # Not `**`, which makes complex numbers of negative ones.
    ast.Pow: math.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_OF_ONE: dict[str, Callable[[float], float]] = {
    "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt, "log": math.log,
}  # fmt: skip
_OF_MANY: dict[str, Callable[..., float]] = {
    "min": lambda *values: min(values),
    "max": lambda *values: max(values),
}


def read(text: str, names: Collection[str]) -> Formula:
    """The formula over the scores with these names. Raises ValueError, with the reason, for what is none."""
    if len(text) > MAX_CHARS:
        raise ValueError(f"the formula has more than {MAX_CHARS} characters")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError("the formula cannot be read") from None
    value = _read(tree.body, names)

    def finite(scores: Scores) -> float:
        found = value(scores)
        if not math.isfinite(found):
            raise OverflowError("it is not finite")
        return found

    return finite


def _read(node: ast.expr, names: Collection[str]) -> Formula:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            constant = float(number)
            return lambda _: constant
        case ast.Name(id=name) if name in names:
            return lambda scores: scores[name]
        case ast.Name(id=name):
            raise ValueError(f"the formula names {name!r}, which is none of its graders")
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _applied(_OPERATORS[type(op)], [operand], names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _applied(_OPERATORS[type(op)], [left, right], names)
        case ast.Call(func=ast.Name(id=name), args=[operand], keywords=[]) if name in _OF_ONE:
            return _applied(_OF_ONE[name], [operand], names)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as operands, keywords=[]) if name in _OF_MANY:
            return _applied(_OF_MANY[name], operands, names)
    functions = ", ".join([*_OF_ONE, *_OF_MANY])
    raise ValueError(f"the formula may hold numbers, the names of graders, + - * / ^ and {functions}")


def _applied(function: Callable[..., float], nodes: list[ast.expr], names: Collection[str]) -> Formula:
    operands = [_read(node, names) for node in nodes]

    def value(scores: Scores) -> float:
        try:
            return float(function(*(operand(scores) for operand in operands)))
        except ValueError as err:
            # The root of a negative number, the integer part of infinity.
            raise ArithmeticError(str(err)) from err

    return value
