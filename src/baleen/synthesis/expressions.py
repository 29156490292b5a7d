"""What a tool task asks for, as an expression in several renderings: English, a plan, a solution over the tools, SQL.

The solution finds the answer the way an agent must, one call after the other; the SQL finds it in the database that no
agent reaches. They share nothing but the expression, so that each proves the other. The solution's text may only call
tools and compute (solution.py holds it to that).
"""

from __future__ import annotations

from dataclasses import dataclass

from baleen.synthesis.world import Table, World


@dataclass(frozen=True)
class Read:
    """A field of one row. `of` is the row's key, or the expression that reads its id from another row."""

    table: Table
    field: str
    of: Read | tuple[str, ...]

    @property
    def subject(self) -> str:
        """The row that the chain of references begins at, in words."""
        return self.of.subject if isinstance(self.of, Read) else self.table.subject(self.of)


@dataclass(frozen=True)
class Plus:
    """A sum."""

    left: Expression
    right: Expression


@dataclass(frozen=True)
class Choice:
    """`then` if left is more than right, else `other`."""

    left: Expression
    right: Expression
    then: Read
    other: Read


Expression = Read | Plus | Choice | int | str
"""A number or a name is its own value."""


def english(expression: Expression) -> str:
    """The expression as a noun phrase."""
    if isinstance(expression, Read):
        return f"the {path(expression)} of {expression.subject}"
    if isinstance(expression, Plus):
        return f"{english(expression.left)} plus {english(expression.right)}"
    if isinstance(expression, Choice):
        return f"{english(expression.then)} if {condition(expression)}, else {english(expression.other)}"
    return str(expression)


def path(read: Read) -> str:
    """The field as it is reached from the first row: `name of the author`."""
    return f"{read.field} of the {path(read.of)}" if isinstance(read.of, Read) else read.field


def condition(choice: Choice) -> str:
    """What the choice hangs on, as a clause."""
    return f"{english(choice.left)} is above {english(choice.right)}"


def plan(expression: Expression) -> str:
    """The expression in the order in which it is worked out: `book TaRoBi > author > age plus 40`."""
    if isinstance(expression, Read):
        before = plan(expression.of) if isinstance(expression.of, Read) else expression.subject
        return f"{before} > {expression.field}"
    if isinstance(expression, Plus):
        return f"{plan(expression.left)} plus {plan(expression.right)}"
    if isinstance(expression, Choice):
        test = f"{plan(expression.left)} over {plan(expression.right)}"
        return f"if {test}: {plan(expression.then)}, else {plan(expression.other)}"
    return str(expression)


def sql(expression: Expression) -> str:
    """The expression as one SQL scalar."""
    if isinstance(expression, Read):
        table = expression.table
        keys = [sql(expression.of)] if isinstance(expression.of, Read) else [f"'{key}'" for key in expression.of]
        where = " and ".join(f'"{column}" = {key}' for column, key in zip(table.by, keys, strict=True))
        return f'(select "{expression.field}" from "{table.noun}" where {where})'
    if isinstance(expression, Plus):
        return f"({sql(expression.left)} + {sql(expression.right)})"
    if isinstance(expression, Choice):
        case = f"case when {sql(expression.left)} > {sql(expression.right)}"
        return f"({case} then {sql(expression.then)} else {sql(expression.other)} end)"
    return str(expression)


def solution(expression: Expression, world: World) -> str:
    """The source of `solve(tools)`, which finds the expression's value with the world's tools."""
    return "\n".join(_Writer(world).write(expression)) + "\n"


class _Writer:
    """Writes statements in the order in which an agent would call. A row that was read is not asked for again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines = ["def solve(tools):"]
        self.rows: dict[tuple[Table, Read | tuple[str, ...]], str] = {}
        self.values: dict[Expression, str] = {}
        self.count = 0

    def write(self, expression: Expression, indent: str = "    ") -> list[str]:
        """Statements that return the expression's value."""
        if isinstance(expression, Choice):
            left, right = self.value(expression.left, indent), self.value(expression.right, indent)
            seen = self.assign("seen", f'tools.{self.world.compare}(a={left}, b={right})["result"]', indent)
            known = dict(self.rows), dict(self.values)
            for head, branch in ((f'if {seen} == "more":', expression.then), ("else:", expression.other)):
                self.rows, self.values = dict(known[0]), dict(known[1])
                self.lines.append(indent + head)
                self.write(branch, indent + "    ")
        else:
            self.lines.append(f"{indent}return {self.value(expression, indent)}")
        return self.lines

    def value(self, expression: Expression, indent: str) -> str:
        """A name or literal that holds the value, after the statements that fetch it."""
        if isinstance(expression, int | str):
            return repr(expression)
        if expression not in self.values:
            if isinstance(expression, Read):
                source = f'{self.row(expression, indent)}["{expression.field}"]'
                name = expression.field
            elif isinstance(expression, Plus):
                left, right = self.value(expression.left, indent), self.value(expression.right, indent)
                source = f'tools.{self.world.add}(a={left}, b={right})["result"]'
                name = "sum"
            else:
                raise TypeError("a choice can only be the whole of an expression")
            self.values[expression] = self.assign(name, source, indent)
        return self.values[expression]

    def row(self, read: Read, indent: str) -> str:
        """The name of the row that `read` reads from."""
        key = (read.table, read.of)
        if key not in self.rows:
            if isinstance(read.of, Read):
                arguments = f"id={self.value(read.of, indent)}"
            else:
                arguments = ", ".join(f'{name}="{value}"' for name, value in zip(read.table.by, read.of, strict=True))
            self.rows[key] = self.assign(read.table.noun, f"tools.{read.table.tool}({arguments})", indent)
        return self.rows[key]

    def assign(self, name: str, source: str, indent: str) -> str:
        self.count += 1
        self.lines.append(f"{indent}{name}{self.count} = {source}")
        return f"{name}{self.count}"
