"""Task templates, difficulty 1 (one call) to 4 (four dependent calls), over any world.

A shape (a look-up, a chain, a sum, a condition) meets a path through the world's tables: together they are a template,
and a database's rows fill it. Whatever the path, the difficulty is the number of calls that wait for each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from baleen.synthesis.expressions import Choice, Expression, Plus, Read, condition, english
from baleen.synthesis.world import Database, Table, World

VALUE = ("What is {0}?", "Give {0}.", "Find {0}.")
BRANCH = ("If {0}, give {1}, else {2}.", "When {0}: {1}. Otherwise: {2}.")
LARGER = (
    "Of {0} and {1}, take the one with more {2}: give {3}.",
    "Which has more {2}, {0} or {1}? Give {3}.",
    "More {2}: {0} or {1}? Of that one, find {3}.",
)


@dataclass(frozen=True)
class Question:
    """A template filled with rows: what is asked, in words and as an expression."""

    template: str
    text: str
    expression: Expression


@dataclass(frozen=True)
class Chain:
    """A path through the tables: from a row of the first one over references to a field of the last."""

    tables: tuple[Table, ...]
    field: str

    @property
    def numeric(self) -> bool:
        """Whether it ends at a number."""
        return self.tables[-1].field(self.field).kind == "number"

    @property
    def label(self) -> str:
        """How templates name it: `book.author.age`."""
        return ".".join([*(table.noun for table in self.tables), self.field])

    def read(self, key: tuple[str, ...]) -> Read:
        """The expression that follows the chain from the row with that key."""
        of: Read | tuple[str, ...] = key
        for table, following in pairwise(self.tables):
            of = Read(table, following.noun, of)
        return Read(self.tables[-1], self.field, of)


@lru_cache(maxsize=512)
def chains(world: World, length: int) -> tuple[Chain, ...]:
    """Every path over `length` tables."""
    paths: list[tuple[Table, ...]] = [(table,) for table in world.tables]
    for _ in range(length - 1):
        paths = [(*p, world.table(f.name)) for p in paths for f in p[-1].fields if f.kind == "ref"]
    return tuple(Chain(p, field.name) for p in paths for field in p[-1].fields if field.kind != "ref")


@dataclass(frozen=True)
class Draw:
    """Where a template takes its parts from."""

    database: Database
    rng: random.Random

    def chain(self, length: int, *, numeric: bool = False) -> Chain:
        """A path of that length; with `numeric` one that ends at a number."""
        found = [each for each in chains(self.database.world, length) if each.numeric or not numeric]
        return self.rng.choice(found)

    def keys(self, table: Table, count: int) -> list[tuple[str, ...]]:
        """The keys of `count` different rows."""
        rows = self.rng.sample(self.database.rows[table.noun], count)
        return [tuple(row[name] for name in table.by) for row in rows]

    def constant(self) -> int:
        """A two-digit number to add."""
        return self.rng.randint(10, 99)

    def value(self, kind: str, expression: Expression) -> Question:
        """A question for a value."""
        return Question(kind, self.rng.choice(VALUE).format(english(expression)), expression)


def look_up(draw: Draw, length: int) -> Question:
    """A field at the end of a path."""
    chain = draw.chain(length)
    return draw.value(f"look-up {chain.label}", chain.read(draw.keys(chain.tables[0], 1)[0]))


def sum_of_constants(draw: Draw) -> Question:
    """Two numbers that the question gives."""
    return draw.value("sum", Plus(draw.constant(), draw.constant()))


def plus_constant(draw: Draw, length: int) -> Question:
    """A number at the end of a path, and a given one."""
    chain = draw.chain(length, numeric=True)
    read = chain.read(draw.keys(chain.tables[0], 1)[0])
    return draw.value(f"plus {chain.label}", Plus(read, draw.constant()))


def sum_of_reads(draw: Draw, length: int) -> Question:
    """A number at the end of a path, and a number of another row."""
    first, second = draw.chain(length, numeric=True), draw.chain(1, numeric=True)
    left = first.read(draw.keys(first.tables[0], 1)[0])
    right = second.read(draw.keys(second.tables[0], 1)[0])
    return draw.value(f"sum {first.label} {second.label}", Plus(left, right))


def branch(draw: Draw, length: int) -> Question:
    """A number against a threshold decides which of two rows is looked up."""
    tested, wanted = draw.chain(length, numeric=True), draw.chain(1)
    subject = draw.keys(tested.tables[0], 1)[0]
    then, other = (wanted.read(key) for key in draw.keys(wanted.tables[0], 2))
    choice = Choice(tested.read(subject), _threshold(draw, tested), then, other)
    words = condition(choice), english(then), f"of {other.subject}"
    text = draw.rng.choice(BRANCH).format(*words)
    return Question(f"branch {tested.label} {wanted.label}", text, choice)


def branch_onward(draw: Draw) -> Question:
    """A number against a threshold decides whether to go on from the same row or to look another one up."""
    onward, wanted = draw.chain(2), draw.chain(1)
    start = onward.tables[0]
    tests = [each for each in chains(draw.database.world, 1) if each.numeric and each.tables[0] == start]
    if not tests:
        return branch(draw, 1)
    tested = draw.rng.choice(tests)
    subject, key = draw.keys(start, 1)[0], draw.keys(wanted.tables[0], 1)[0]
    then, other = onward.read(subject), wanted.read(key)
    choice = Choice(tested.read(subject), _threshold(draw, tested), then, other)
    words = condition(choice), _its(onward), english(other)
    text = draw.rng.choice(BRANCH).format(*words)
    return Question(f"onward {tested.label} {onward.label} {wanted.label}", text, choice)


def larger(draw: Draw) -> Question:
    """The row with the larger number of two leads on."""
    starts = [each for each in chains(draw.database.world, 2) if any(f.kind == "number" for f in each.tables[0].fields)]
    onward = draw.rng.choice(starts)
    start = onward.tables[0]
    field = draw.rng.choice([f.name for f in start.fields if f.kind == "number"])
    first, second = draw.keys(start, 2)
    left, right = Read(start, field, first), Read(start, field, second)
    choice = Choice(left, right, onward.read(first), onward.read(second))
    text = draw.rng.choice(LARGER).format(left.subject, right.subject, field, _its(onward))
    return Question(f"larger {start.noun}.{field} {onward.label}", text, choice)


SHAPES: dict[int, tuple[Callable[[Draw], Question], ...]] = {
    1: (lambda draw: look_up(draw, 1), lambda draw: look_up(draw, 1), sum_of_constants),
    2: (lambda draw: look_up(draw, 2), lambda draw: plus_constant(draw, 1)),
    3: (
        lambda draw: look_up(draw, 3),
        lambda draw: plus_constant(draw, 2),
        lambda draw: sum_of_reads(draw, 1),
        lambda draw: branch(draw, 1),
        branch_onward,
    ),
    4: (
        lambda draw: plus_constant(draw, 3),
        lambda draw: sum_of_reads(draw, 2),
        lambda draw: branch(draw, 2),
        larger,
    ),
}


def _its(chain: Chain) -> str:
    """A path of two tables from a row that was named before: `the name of its author`."""
    return f"the {chain.field} of its {chain.tables[1].noun}"


def _threshold(draw: Draw, chain: Chain) -> int:
    """A number in the middle half of a field's range: either side is likely, whatever the row."""
    field = chain.tables[-1].field(chain.field)
    quarter = (field.high - field.low) // 4
    return draw.rng.randint(field.low + quarter, field.high - quarter)
