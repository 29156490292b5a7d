"""Running a task's solution: a function `solve(tools)` that may only call tools and compute.

The rule is held by reading the source, not by trust: it may assign, branch, subscript, compare, do arithmetic, format
text and call `tools.<name>(...)`; nothing else. Running it records every call and what the solution read from every
result, which is what demonstrations speak about and what validation tampers with.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Any

Call = Callable[[str, dict[str, Any]], Any]

_ALLOWED = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.If, ast.Return, ast.Expr),
    *(ast.Name, ast.Load, ast.Store, ast.Constant, ast.Subscript, ast.Attribute, ast.Call, ast.keyword),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Mod, ast.UnaryOp, ast.USub),
    *(ast.Compare, ast.Eq, ast.Gt, ast.Lt, ast.JoinedStr, ast.FormattedValue),
)


class SolutionError(ValueError):
    """The solution broke the rule, or failed while it ran."""


@dataclass(frozen=True)
class Reading:
    """A value that the solution took from the result of call number `source`."""

    name: str
    value: Any
    source: int


@dataclass
class Step:
    """One call of a solution: what came back, and what was read, from it or from earlier results, before the next."""

    tool: str
    arguments: dict[str, Any]
    result: Any
    read: list[Reading] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A solution's answer with the steps that led to it."""

    answer: str
    steps: tuple[Step, ...]


def run_solution(source: str, call: Call) -> Run:
    """Runs `source` with `call(tool, arguments)` behind its tools. Raises `SolutionError`."""
    scope: dict[str, Any] = {"__builtins__": {}}
    exec(_compiled(source), scope)
    steps: list[Step] = []
    try:
        answer = scope["solve"](_Tools(call, steps))
    except (KeyError, TypeError) as error:
        raise SolutionError(f"the solution failed after {len(steps)} calls: {error!r}") from error
    return Run(str(answer).strip(), tuple(steps))


@lru_cache(maxsize=1024)
def _compiled(source: str) -> CodeType:
    """The checked solution. Raises `SolutionError` where the source does more than call tools and compute."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise SolutionError(f"the solution is not Python: {error}") from error
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            raise SolutionError(f"a solution may only call tools and compute: {type(node).__name__}")
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "tools"):
            raise SolutionError(f"a solution may reach into nothing but tools: .{node.attr}")
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute):
            raise SolutionError("a solution may call nothing but tools")
    heads = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if len(heads) != 1 or len(tree.body) != 1 or heads[0].name != "solve":
        raise SolutionError("a solution is one function, solve(tools)")
    return compile(tree, "<solution>", "exec")


class _Tools:
    """What a solution sees: an attribute per tool."""

    def __init__(self, call: Call, steps: list[Step]) -> None:
        self._call, self._steps = call, steps

    def __getattr__(self, tool: str) -> Callable[..., Any]:
        def invoke(**arguments: Any) -> Any:
            result = self._call(tool, arguments)
            step = Step(tool, arguments, result)
            self._steps.append(step)
            if isinstance(result, dict):
                return _Observed(result, self._steps)
            step.read.append(Reading("result", result, len(self._steps) - 1))
            return result

        return invoke


class _Observed(dict[str, Any]):
    """A result that notes what is read from it, at the step during which it is read."""

    def __init__(self, values: dict[str, Any], steps: list[Step]) -> None:
        super().__init__(values)
        self._steps, self._source = steps, len(steps) - 1

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self._steps[-1].read.append(Reading(key, value, self._source))
        return value
