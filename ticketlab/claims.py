"""Claims about tickets as assertions: an expression per seed, an interval over seeds, a verdict.

that: ticket - reinit        at: {density: 0.21}        at_least: 0.003        seeds: 5
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ticketlab.report import Estimate, estimate, half_width

Verdict = Literal["holds", "fails", "not enough seeds"]
MOST_SEEDS = 1000
Values = Mapping[int, float]
"""Seed → what was measured with it."""

OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Bounds:
    """Where a mean is expected; infinite where a side is open."""

    low: float = -math.inf
    high: float = math.inf


def terms(expression: str) -> list[str]:
    """Names in an expression of +, -, *, / and numbers; raises ValueError for anything else."""
    return _parsed(expression)[1]


def _parsed(expression: str) -> tuple[ast.AST, list[str]]:
    """An expression and the names in it."""
    try:
        body = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"'{expression}' is not an expression of names, numbers and + - * /") from error
    found: dict[str, None] = {}
    _walk(body, expression, found)
    if not found:
        raise ValueError(f"'{expression}' names nothing that is measured")
    return body, list(found)


def _walk(node: ast.AST, expression: str, found: dict[str, None]) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        _walk(node.left, expression, found)
        _walk(node.right, expression, found)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _walk(node.operand, expression, found)
    elif isinstance(node, ast.Name | ast.Attribute):
        found[_dotted(node, expression)] = None
    elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
        raise ValueError(f"'{expression}' is not an expression of names, numbers and + - * /")


def _dotted(node: ast.AST, expression: str) -> str:
    """`supermask.magnitude.init` as it was written."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, expression)}.{node.attr}"
    if not isinstance(node, ast.Name):
        raise ValueError(f"'{expression}' is not an expression of names, numbers and + - * /")
    return node.id


def measured(expression: str, values: Mapping[str, Values]) -> Estimate | None:
    """The expression's mean over the seeds that all of its terms have; None where there is no such seed.

    Raises ArithmeticError that names the first seed with which it is no number.
    """
    body, wanted = _parsed(expression)
    seeds = sorted(set.intersection(*(set(values[name]) for name in wanted)))
    found = [_of_seed(body, seed, {name: values[name][seed] for name in wanted}) for seed in seeds]
    return estimate(found) if found else None


def _of_seed(body: ast.AST, seed: int, of: Mapping[str, float]) -> float:
    try:
        value = _value(body, of)
    except ZeroDivisionError as error:
        raise ArithmeticError(f"with seed {seed} something is divided by zero") from error
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ArithmeticError(f"with seed {seed} it is too large for a number")
    return value


def _value(node: ast.AST, of: Mapping[str, float]) -> float:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_value(node.left, of), _value(node.right, of))
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, of)
    if isinstance(node, ast.Name | ast.Attribute):
        return of[ast.unparse(node)]
    assert isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return float(node.value)


def verdict(found: Estimate | None, bounds: Bounds, seeds: int) -> Verdict:
    """holds where the whole interval is within the bounds, fails where it is outside; else more seeds must decide.

    With fewer seeds than the claim asks for nothing is decided, nor by an interval that reaches over a bound.
    """
    if found is None or found.n < seeds or found.low is None or found.high is None:
        return "not enough seeds"
    if bounds.low <= found.low and found.high <= bounds.high:
        return "holds"
    return "fails" if found.high < bounds.low or found.low > bounds.high else "not enough seeds"


def seeds_to_decide(found: Estimate, bounds: Bounds, least: int) -> int | None:
    """Seeds, `least` or more, after which the interval would reach over no bound, were all to stay as it is.

    None where there is no interval yet, or where no number of seeds up to MOST_SEEDS would do.
    """
    if found.high is None:
        return None
    deviation = (found.high - found.mean) / half_width(1, found.n)
    distance = min(abs(found.mean - bounds.low), abs(found.mean - bounds.high))
    return next((n for n in range(max(found.n, least), MOST_SEEDS + 1) if half_width(deviation, n) <= distance), None)


def expected_in_words(record: Mapping[str, Any]) -> str:
    """The bounds of a claim as `verify` keeps it: `≥ 0.20 points`."""
    bounds = record["expected"]
    if "expected" in bounds:
        return f"{_spoken(bounds['expected'], record)} ± {_spoken(bounds['tolerance'], record)}"
    told = {"at_least": "≥", "at_most": "≤"}
    return ", ".join(f"{sign} {_spoken(bounds[name], record)}" for name, sign in told.items() if name in bounds)


def measured_in_words(record: Mapping[str, Any]) -> str:
    """Mean and interval, or why there is none."""
    found = record["measured"]
    if not found:
        return str(record["problem"] or "nothing")
    half = "" if found["high"] is None else f" ± {_spoken(found['high'] - found['mean'], record)}"
    return f"{_spoken(found['mean'], record)}{half}"


def _spoken(value: float, record: Mapping[str, Any]) -> str:
    """Accuracies in points, anything else as it is; a ratio of accuracies is a plain number."""
    in_points = record["metric"].endswith(("accuracy", "barrier")) and "/" not in record["that"]
    return f"{100 * value:.2f} points" if in_points else f"{value:.4g}"
