"""Working an expression out by rewriting it: every result takes the place of what it answers.

    book DiFaSi > author > age plus 40   ->   author a17 > age plus 40   ->   38 plus 40   ->   78

What is left says by itself which call comes next, so a policy that writes it down after every result has to remember
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baleen.synthesis.expressions import Choice, Expression, Plus, Read, plan
from baleen.synthesis.solution import Step
from baleen.synthesis.world import World

Results = Mapping[tuple[str, tuple[Any, ...]], Mapping[str, Any]]
"""What calls brought, by tool and arguments."""


def plans(expression: Expression, world: World, steps: Sequence[Step]) -> list[str]:
    """The plan before the first call and what is left of it after each of a solution's `steps`."""
    results: dict[tuple[str, tuple[Any, ...]], Mapping[str, Any]] = {}
    written = [plan(expression)]
    for step in steps:
        results[step.tool, tuple(step.arguments.values())] = step.result
        written.append(plan(rewrite(expression, world, results)))
    return written


def rewrite(expression: Expression, world: World, results: Results) -> Expression:
    """What is left of `expression` where `results` are known; a number or a name when nothing is. The branches of a
    choice stay as they are until it is made."""
    if isinstance(expression, Read):
        of = rewrite(expression.of, world, results) if isinstance(expression.of, Read) else expression.of
        if isinstance(of, Read):
            return Read(expression.table, expression.field, of)
        key = of if isinstance(of, tuple) else (str(of),)
        row = results.get((expression.table.tool, key))
        return Read(expression.table, expression.field, key) if row is None else row[expression.field]
    if isinstance(expression, Plus | Choice):
        left, right = (rewrite(part, world, results) for part in (expression.left, expression.right))
        tool = world.add if isinstance(expression, Plus) else world.compare
        found = results.get((tool, (left, right)))
        if isinstance(expression, Plus):
            return Plus(left, right) if found is None else found["result"]
        if found is None:
            return Choice(left, right, expression.then, expression.other)
        return rewrite(expression.then if found["result"] == "more" else expression.other, world, results)
    return expression
