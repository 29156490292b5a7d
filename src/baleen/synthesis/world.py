"""A synthesised environment: tables, the tools that read them, and a database grown from a seed.

A `World` is a declaration (worlds.py holds them); this file is the machinery that they share. The same world has as
many databases as there are seeds, so nothing about a database can be learnt by heart: names are two or three syllables
out of thousands, each with a capital as in `TaRoBi` so that a tokenizer cuts them there, ids a letter and two digits,
numbers at most three digits. The policy reaches the data through the tools only.
"""

from __future__ import annotations

import inspect
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

ROWS = 15
SYLLABLES = tuple(consonant + vowel for consonant in "bdfklmnrst" for vowel in "aeiou")
Tool = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Field:
    """A column: a made-up name, a number in [low, high], or a reference to the table of the same noun."""

    name: str
    kind: Literal["name", "number", "ref"]
    low: int = 10
    high: int = 99


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one noun and the tool that reads one of them. `by` is the key: `("id",)`, or the names it is known by."""

    noun: str
    tool: str
    by: tuple[str, ...]
    fields: tuple[Field, ...]

    @property
    def by_id(self) -> bool:
        """Whether rows are known by an id instead of by names."""
        return self.by == ("id",)

    def subject(self, key: tuple[str, ...]) -> str:
        """A row in words: `book TaRoBi`, `trip Melu to Rano`."""
        return f"{self.noun} {' to '.join(key)}"

    def field(self, name: str) -> Field:
        """The column of that name."""
        return next(field for field in self.fields if field.name == name)


@dataclass(frozen=True, eq=False)
class World:
    """Tables with their tools, and the names under which this world offers comparison and addition."""

    name: str
    tables: tuple[Table, ...]
    compare: str = "compare"
    add: str = "add"

    def table(self, noun: str) -> Table:
        """The table of that noun."""
        return next(table for table in self.tables if table.noun == noun)

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Every tool of this world."""
        return (*(table.tool for table in self.tables), self.compare, self.add)


def names(*fields: str) -> tuple[Field, ...]:
    """Columns of made-up names."""
    return tuple(Field(field, "name") for field in fields)


def numbers(*fields: str, low: int = 10, high: int = 99) -> tuple[Field, ...]:
    """Columns of numbers in [low, high]."""
    return tuple(Field(field, "number", low, high) for field in fields)


def refs(*nouns: str) -> tuple[Field, ...]:
    """Columns that hold the id of a row of another table."""
    return tuple(Field(noun, "ref") for noun in nouns)


class Database:
    """One world's rows under one seed, in SQLite. It never changes, so episodes may share it."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.tools = tools(world)
        self.rows = grow(world, random.Random(f"{world.name}:{seed}"))
        # Episodes may be stepped from several threads; nothing writes after this constructor.
        self.connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        for table in world.tables:
            columns = [*table.by, *(field.name for field in table.fields)]
            quoted = ", ".join(f'"{column}"' for column in columns)
            self.connection.execute(f'create table "{table.noun}" ({quoted})')
            marks = ", ".join("?" * len(columns))
            rows = [tuple(row[column] for column in columns) for row in self.rows[table.noun]]
            self.connection.executemany(f'insert into "{table.noun}" values ({marks})', rows)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, and in this task or thread only, the world's tools read this database."""
        token = _OPEN.set(self)
        try:
            yield
        finally:
            _OPEN.reset(token)

    def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """What a tool gives, straight from its function: for solutions, which make no mistakes in their arguments."""
        with self.opened():
            return self.tools[tool](**arguments)

    def query(self, statement: str) -> Any:
        """The single value of an SQL statement: how verifiers find the truth without the tools."""
        return self.connection.execute(statement).fetchone()[0]


@lru_cache(maxsize=256)
def tools(world: World) -> dict[str, Tool]:
    """The world's tools by name: plain functions with type hints and a docstring, made once, because a schema costs
    more to make than an episode. They read the database that is `opened` around the call."""
    lookups = {table.tool: _lookup(table) for table in world.tables}
    return lookups | {world.compare: _named(compare, world.compare), world.add: _named(add, world.add)}


_OPEN: ContextVar[Database] = ContextVar("open database")


def grow(world: World, rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    """The rows of every table. Each column's values differ from row to row, so that a wrong row is a wrong answer."""
    keyed = sum(len(table.by) for table in world.tables if not table.by_id)
    named = sum(field.kind == "name" for table in world.tables for field in table.fields)
    pool = iter(distinct_names(rng, ROWS * (keyed + named)))
    keys: dict[str, list[tuple[str, ...]]] = {}
    for table in world.tables:
        if table.by_id:
            keys[table.noun] = [(f"{table.noun[0]}{number}",) for number in rng.sample(range(10, 100), ROWS)]
        else:
            keys[table.noun] = [tuple(next(pool) for _ in table.by) for _ in range(ROWS)]
    rows: dict[str, list[dict[str, Any]]] = {}
    for table in world.tables:
        columns: dict[str, list[Any]] = {}
        for field in table.fields:
            if field.kind == "number":
                columns[field.name] = rng.sample(range(field.low, field.high + 1), ROWS)
            elif field.kind == "name":
                columns[field.name] = [next(pool) for _ in range(ROWS)]
            else:
                columns[field.name] = [key[0] for key in rng.sample(keys[field.name], ROWS)]
        rows[table.noun] = [
            dict(zip(table.by, key, strict=True)) | {name: values[index] for name, values in columns.items()}
            for index, key in enumerate(keys[table.noun])
        ]
    return rows


def distinct_names(rng: random.Random, count: int) -> list[str]:
    """`count` different made-up names, two thirds of them of two syllables, the others of three."""
    short = count * 2 // 3
    numbers = [(2, number) for number in rng.sample(range(len(SYLLABLES) ** 2), short)]
    numbers += [(3, number) for number in rng.sample(range(len(SYLLABLES) ** 3), count - short)]
    rng.shuffle(numbers)
    return [_spelled(length, number) for length, number in numbers]


def _spelled(length: int, number: int) -> str:
    syllables = []
    for _ in range(length):
        number, index = divmod(number, len(SYLLABLES))
        syllables.append(SYLLABLES[index].capitalize())
    return "".join(syllables)


def compare(a: int, b: int) -> dict[str, Any]:
    """Is a more or less than b?"""
    if not (_is_number(a) and _is_number(b)):
        return {"error": "not a number"}
    return {"result": "more" if a > b else "less" if a < b else "same"}


def add(a: int, b: int) -> dict[str, Any]:
    """Sum of a and b."""
    if not (_is_number(a) and _is_number(b)):
        return {"error": "not a number"}
    return {"result": a + b}


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lookup(table: Table) -> Tool:
    """The tool of a table: a plain function whose signature and docstring come from the declaration."""
    columns = [field.name for field in table.fields]
    wanted = ", ".join(f'"{column}"' for column in columns)
    where = " and ".join(f'"{key}" = ?' for key in table.by)
    statement = f'select {wanted} from "{table.noun}" where {where}'

    def lookup(**keys: str) -> dict[str, Any]:
        row = _OPEN.get().connection.execute(statement, [str(keys[name]) for name in table.by]).fetchone()
        return {"error": "not found"} if row is None else dict(zip(columns, row, strict=True))

    lookup.__name__ = lookup.__qualname__ = table.tool
    lookup.__doc__ = f"{table.noun} by {', '.join(table.by)}: {', '.join(columns)}"
    lookup.__annotations__ = dict.fromkeys(table.by, str) | {"return": dict[str, Any]}
    lookup.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=str) for name in table.by],
        return_annotation=dict[str, Any],
    )
    return lookup


def _named(function: Tool, name: str) -> Tool:
    """The same function under another name."""

    def renamed(a: int, b: int) -> dict[str, Any]:
        return function(a, b)

    renamed.__name__ = renamed.__qualname__ = name
    renamed.__doc__ = function.__doc__
    # The annotations are strings in this file; the schema is made from the real types.
    renamed.__annotations__ = {"a": int, "b": int, "return": dict[str, Any]}
    return renamed
