"""The reasoning domain: sums worked out in the reasoning, and larger ones handed to the code interpreter.

Without a tool: running sums of digits up to 5, plain or modulo 10; the difficulty is the number of additions. With the
`python` tool: expressions and short word problems over two- and three-digit numbers; the difficulty is the number of
operations, and the largest are done in two programs, the second of which takes up the first one's result.
"""

from __future__ import annotations

import ast
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import add, mod, mul, sub
from typing import Any

from baleen.agent.python_tool import PythonTool

EXPRESSION = ("What is {0}?", "Compute {0}.", "Use python: {0} = ?")
TWICE = ("Compute {0}. Then give that times {1}.", "First {0}, then times {1}. Result?")
CHAIN = ("What is {0}?", "Add up {0}.", "Sum: {0}.")
MODULO = ("What is {0} mod 10?", "Add up {0}, modulo 10.", "Last digit of {0}?")
# {0} {1} {2}: the numbers; then the expression, whose operations give the difficulty.
PROBLEMS = (
    ("{0} boxes hold {1} {noun} each. How many {noun}?", "{0}*{1}"),
    ("A shop had {0} {noun} and got {1} more. How many now?", "{0}+{1}"),
    ("{0} boxes hold {1} {noun} each, and {2} lie beside. How many {noun}?", "{0}*{1}+{2}"),
    ("Of {0} rows with {1} {noun} each, {2} {noun} were sold. How many are left?", "{0}*{1}-{2}"),
    ("{0} and {1} {noun} are packed, {2} times. How many {noun}?", "({0}+{1})*{2}"),
    ("{0} bags hold {1} {noun}, {2} bags hold {3}. How many {noun}?", "{0}*{1}+{2}*{3}"),
    ("{0} bags of {1} {noun} and {2} of {3} arrive. {4} are sold. How many are left?", "{0}*{1}+{2}*{3}-{4}"),
)
THINGS = ("pens", "eggs", "nuts", "cups", "coins", "cards", "seeds", "lamps")


@dataclass(frozen=True)
class Problem:
    """A question with its solution's source. `key` is the content by which splits are told apart."""

    text: str
    answer: str
    difficulty: int
    source: str
    key: str
    metadata: dict[str, Any] = field(default_factory=dict)


def mental(rng: random.Random, difficulty: int) -> Problem:
    """A running sum of `difficulty` additions of different digits from 1 to 5; half of them modulo 10."""
    digits = rng.sample(range(1, 6), difficulty + 1)
    modulo = rng.random() < 0.5
    steps, total = [], digits[0]
    for digit in digits[1:]:
        reduced = (total + digit) % 10 if modulo else total + digit
        shown = f"{total}+{digit}={total + digit}"
        steps.append(f"{shown} so {reduced}" if modulo and reduced != total + digit else shown)
        total = reduced
    text = "+".join(map(str, digits))
    formula = f"({text}) % 10" if modulo else text
    return Problem(
        text=rng.choice(MODULO if modulo else CHAIN).format(text),
        answer=str(total),
        difficulty=difficulty,
        source=f"def solve(tools):\n    return {formula}\n",
        key=formula,
        metadata={"steps": steps},
    )


def interpreted(rng: random.Random, difficulty: int) -> Problem:
    """A calculation of `difficulty` operations for the `python` tool; its result lies between 20 and 9999."""
    while True:
        problem = _draw(rng, difficulty)
        if 20 <= int(problem.answer) <= 9999:
            return problem


def calculate(expression: str) -> int:
    """The value of an expression of whole numbers, `+ - * %` and brackets. Raises `ValueError` for anything else."""
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(f"cannot calculate {expression!r}") from error


class Calculator:
    """The `python` tool for our own solutions, without a sandbox: it prints the value of one arithmetic expression.

    Demonstrations of thousands of tasks need no process for it. Whatever is not `print(<arithmetic>)` is refused, so it
    must never stand in for `PythonTool` before a policy. It shows the same schema.
    """

    @functools.wraps(PythonTool.python)
    async def python(self, code: str) -> str:
        if not (code.startswith("print(") and code.endswith(")")):
            raise ValueError("only print(<arithmetic>) is calculated here")
        return str(calculate(code[len("print(") : -1]))


def _draw(rng: random.Random, difficulty: int) -> Problem:
    kind = rng.random()
    problems = [each for each in PROBLEMS if _operations(each[1]) == difficulty]
    if problems and kind < 0.4:
        text, shape = rng.choice(problems)
        numbers = [rng.randint(11, 99) for _ in range(5)]
        expression = shape.format(*numbers)
        return _one_program(text.format(*numbers, noun=rng.choice(THINGS)), expression, difficulty)
    if difficulty >= 3 and kind < 0.7:
        return _two_programs(rng, difficulty)
    expression = _expression(rng, difficulty)
    return _one_program(rng.choice(EXPRESSION).format(expression), expression, difficulty)


def _one_program(text: str, expression: str, difficulty: int) -> Problem:
    source = f'def solve(tools):\n    return tools.python(code="print({expression})")\n'
    return Problem(text, str(calculate(expression)), difficulty, source, expression)


def _two_programs(rng: random.Random, difficulty: int) -> Problem:
    expression, factor = _expression(rng, difficulty - 1), rng.randint(2, 9)
    source = (
        f'def solve(tools):\n    first = tools.python(code="print({expression})")\n'
        f'    return tools.python(code=f"print({{first}}*{factor})")\n'
    )
    answer = str(calculate(f"({expression})*{factor}"))
    text = rng.choice(TWICE).format(expression, factor)
    return Problem(text, answer, difficulty, source, f"({expression})*{factor}")


def _expression(rng: random.Random, operations: int) -> str:
    """Operands of two or three digits; at most one product, so that results stay short."""
    product = rng.randrange(operations)
    parts = [str(rng.randint(11, 99))]
    for index in range(operations):
        operator = "*" if index == product and rng.random() < 0.7 else rng.choice("++-")
        parts += [operator, str(rng.randint(11, 99) if operator == "*" else rng.randint(11, 999))]
    return "".join(parts)


def _operations(shape: str) -> int:
    return sum(shape.count(operator) for operator in "+-*")


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
    ast.Mod: mod,
}


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only whole numbers, + - * % and brackets are calculated")
