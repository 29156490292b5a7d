"""The environments: four that are trained, one whose tools never are, and as many invented ones as are wanted.

The four show what a person would declare. The invented ones are drawn from word lists by seed: a model that meets the
same twenty tool names in every task learns the names, one that meets hundreds learns to read the tools it is offered.
`HARBOR` stays outside: neither its nouns and columns nor its tool names appear anywhere else (a test holds that).
"""

from __future__ import annotations

import random
from functools import lru_cache

from baleen.synthesis.world import Database, Table, World, names, numbers, refs

LIBRARY = World(
    "library",
    (
        Table("book", "book_find", ("title",), (*refs("author"), *numbers("pages", low=100, high=999))),
        Table("author", "author_find", ("id",), (*names("name"), *refs("city"), *numbers("age"))),
        Table("city", "city_find", ("id",), (*names("mayor"), *numbers("area"))),
    ),
)
SHOP = World(
    "shop",
    (
        Table("product", "product_info", ("name",), (*refs("maker"), *numbers("stock", "price"))),
        Table("maker", "maker_info", ("id",), (*names("owner"), *refs("town"))),
        Table("town", "town_info", ("id",), (*names("street"), *numbers("phone", low=100, high=999))),
        Table("staff", "staff_info", ("name",), (*names("job"), *numbers("pay"))),
    ),
    compare="check_more",
    add="sum_of",
)
TRIPS = World(
    "trips",
    (
        Table("trip", "trip_show", ("start", "goal"), (*refs("guide"), *numbers("fare"))),
        Table("hotel", "hotel_show", ("name",), (*refs("guide"), *numbers("rooms", "cost"))),
        Table("guide", "guide_show", ("id",), (*names("name"), *refs("office"))),
        Table("office", "office_show", ("id",), (*names("head"), *numbers("desks"))),
    ),
    compare="more_than",
    add="sum_up",
)
CLINIC = World(
    "clinic",
    (
        Table("patient", "patient_record", ("name",), (*refs("doctor"), *numbers("weight", "bed"))),
        Table("doctor", "doctor_record", ("id",), (*names("name"), *refs("ward"), *numbers("visits"))),
        Table("ward", "ward_record", ("id",), (*names("nurse"), *numbers("beds"))),
    ),
    compare="is_more",
    add="add_up",
)
HARBOR = World(
    "harbor",
    (
        Table("ship", "ship_fetch", ("name",), (*refs("captain"), *numbers("load", "crew"))),
        Table("captain", "captain_fetch", ("id",), (*names("home"), *refs("dock"), *numbers("rank"))),
        Table("dock", "dock_fetch", ("id",), (*names("keeper"), *numbers("depth", low=100, high=999))),
    ),
    compare="exceeds",
    add="total",
)
TRAINED = (LIBRARY, SHOP, TRIPS, CLINIC)
UNSEEN = (HARBOR,)

_WORDS = {
    "nouns": """album artist bank bridge canal car castle chef club coach court farm film forest garden hall horse
    island judge lake league museum nation park pilot planet port river robot school singer song street team tower
    train valley village writer zone""",
    "number fields": "height length width size score level points grade speed votes seats power heat cups doors floors",
    "name fields": "leader boss chief label motto brand patron rival agent host",
}
NOUNS, NUMBER_FIELDS, NAME_FIELDS = (tuple(words.split()) for words in _WORDS.values())
ACTIONS = ("find", "get", "info", "show", "record", "read", "data", "query", "see")
COMPARE = tuple(world.compare for world in TRAINED)
ADD = tuple(world.add for world in TRAINED)


@lru_cache(maxsize=256)
def world(name: str) -> World:
    """The world of that name; `invented-<seed>` is drawn from the word lists. Raises `KeyError` for an unknown name."""
    known = {each.name: each for each in (*TRAINED, *UNSEEN)}
    if name.startswith("invented-"):
        return invent(int(name.removeprefix("invented-")))
    if name not in known:
        raise KeyError(f"no environment {name!r}; known are {', '.join(known)} and invented-<seed>")
    return known[name]


@lru_cache(maxsize=512)
def database(name: str, seed: int) -> Database:
    """The database of a world under a seed. Shared between episodes, because tools only read."""
    return Database(world(name), seed)


def invent(seed: int) -> World:
    """A world of three or four tables with nouns, columns and tool names drawn from the lists."""
    rng = random.Random(f"invent:{seed}")
    nouns = _different_initials(rng, 4)
    counts, words = iter(rng.sample(NUMBER_FIELDS, 6)), iter(rng.sample(NAME_FIELDS, 4))
    action = rng.choice(ACTIONS)
    first, second, third, other = nouns
    tables = [
        Table(first, f"{first}_{action}", ("name",), (*refs(second), *numbers(next(counts), next(counts)))),
        Table(second, f"{second}_{action}", ("id",), (*names(next(words)), *refs(third), *numbers(next(counts)))),
        Table(third, f"{third}_{action}", ("id",), (*names(next(words)), *numbers(next(counts), low=100, high=999))),
    ]
    if rng.random() < 0.5:
        tables.append(Table(other, f"{other}_{action}", ("name",), (*names(next(words)), *numbers(next(counts)))))
    rng.shuffle(tables)
    return World(f"invented-{seed}", tuple(tables), compare=rng.choice(COMPARE), add=rng.choice(ADD))


def _different_initials(rng: random.Random, count: int) -> list[str]:
    """Nouns whose ids cannot be mistaken for each other's: an id begins with its noun's first letter."""
    chosen: list[str] = []
    while len(chosen) < count:
        noun = rng.choice(NOUNS)
        if all(noun[0] != other[0] for other in chosen):
            chosen.append(noun)
    return chosen
