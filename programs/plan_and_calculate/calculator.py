"""A calculator for expressions that an LM writes: whole numbers, `+`, `-`, `*`, and parentheses."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

from sirius_dspy.errors import SiriuSError

_MAX_LENGTH = 200
_MAX_DIGITS = 9
_ALPHABET = re.compile(r"[0-9 ()+*-]+")

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


class ExpressionError(SiriuSError, ValueError):
    """A text is not an expression that the calculator accepts."""


def calculate(expression: str) -> int:
    """Return the value of an expression.

    Only what is listed above is evaluated: no names, calls or powers, at most 200 characters, and numbers of at most 9
    digits, so that no text can do harm or take long.

    Raises:
        ExpressionError: The text is anything else.

    Examples:
        >>> calculate("3 * 4 + 2 * (5 - 1)")
        20
    """
    if len(expression) > _MAX_LENGTH:
        raise ExpressionError(
            f"The expression has {len(expression)} characters, expected at most {_MAX_LENGTH}. Shorten it."
        )
    text = expression.strip()
    if not _ALPHABET.fullmatch(text):  # also because Python warns of some texts that it parses
        raise _refuse(expression)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise _refuse(expression) from error
    return _evaluate(tree.body, expression)


def _evaluate(node: ast.expr, expression: str) -> int:
    match node:
        case ast.Constant(value=int(value)) if type(value) is int and value < 10**_MAX_DIGITS:
            return value
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand, expression)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            left, right = _evaluate(node.left, expression), _evaluate(node.right, expression)
            return _OPERATORS[type(node.op)](left, right)
    raise _refuse(expression)


def _refuse(expression: str) -> ExpressionError:
    return ExpressionError(
        f"{expression!r} cannot be calculated, expected whole numbers of at most {_MAX_DIGITS} digits with +, - and *, "
        "such as '3 * 4 + 2'."
    )
