"""What every world holds, declared or invented."""

import json
import random
import time

import pytest

from baleen.synthesis.environments import world_toolbox
from baleen.synthesis.templates import SHAPES, Draw, chains
from baleen.synthesis.world import Database, distinct_names, tools
from baleen.synthesis.worlds import ACTIONS, ADD, COMPARE, HARBOR, NAME_FIELDS, NOUNS, NUMBER_FIELDS, TRAINED, world

WORLDS = (*TRAINED, HARBOR, *(world(f"invented-{seed}") for seed in range(30)))
EVERY = pytest.mark.parametrize("each", WORLDS, ids=lambda each: each.name)


@EVERY
def test_tools_are_few_and_their_schemas_short(each):
    specs = world_toolbox(each).specs
    assert 4 <= len(specs) <= 6
    for spec in specs:
        assert len(json.dumps(spec.function, separators=(",", ":"))) < 200
        assert 1 <= len(spec.function["parameters"]["properties"]) <= 2
        assert len(spec.function["description"].split()) <= 7


@EVERY
def test_a_wrong_row_is_a_wrong_answer(each):
    for table in each.tables:
        rows = Database(each, 5).rows[table.noun]
        for field in table.fields:
            assert len({row[field.name] for row in rows}) == len(rows)


@EVERY
def test_references_lead_somewhere_and_ids_tell_their_table(each):
    database = Database(each, 7)
    initials = [table.noun[0] for table in each.tables if table.by_id]
    assert len(set(initials)) == len(initials)
    for table in each.tables:
        for field in (field for field in table.fields if field.kind == "ref"):
            for row in database.rows[table.noun]:
                tool = each.table(field.name).tool
                assert "error" not in database.call(tool, {"id": row[field.name]})


@EVERY
def test_every_answer_has_twenty_values_or_more(each):
    fields = [field for table in each.tables for field in table.fields if field.kind == "number"]
    assert all(field.high - field.low >= 20 for field in fields)


@EVERY
def test_every_difficulty_has_three_templates(each):
    for difficulty, shapes in SHAPES.items():
        found = set()
        for seed in range(60):
            rng = random.Random(seed)
            found.add(rng.choice(shapes)(Draw(Database(each, seed % 2), rng)).template)
        assert len(found) >= 3, difficulty
    assert chains(each, 3)


def test_the_unseen_environment_shares_nothing_with_what_is_trained():
    trained = [*TRAINED, *(world(f"invented-{seed}") for seed in range(200))]
    tool_names = {name for each in trained for name in each.tool_names}
    columns = {field.name for each in trained for table in each.tables for field in table.fields}
    columns |= {*NUMBER_FIELDS, *NAME_FIELDS, *NOUNS}
    assert not tool_names & set(HARBOR.tool_names)
    assert not columns & {field.name for table in HARBOR.tables for field in table.fields}
    assert not {table.noun for table in HARBOR.tables} & set(NOUNS)
    assert "fetch" not in ACTIONS
    assert not {HARBOR.compare, HARBOR.add} & {*COMPARE, *ADD}


def test_a_database_is_its_seed():
    assert Database(HARBOR, 3).rows == Database(HARBOR, 3).rows
    assert Database(HARBOR, 3).rows != Database(HARBOR, 4).rows


def test_two_databases_of_a_world_do_not_mix():
    first, second = Database(HARBOR, 1), Database(HARBOR, 2)
    name = first.rows["ship"][0]["name"]
    with first.opened():
        assert second.call("ship_fetch", {"name": name}) == {"error": "not found"}
        assert tools(HARBOR)["ship_fetch"](name=name)["load"] == first.rows["ship"][0]["load"]


def test_a_database_is_built_in_three_milliseconds():
    began = time.process_time()
    for seed in range(50):
        Database(HARBOR, seed)
    assert (time.process_time() - began) / 50 < 0.003


def test_names_differ():
    names = distinct_names(random.Random(0), 500)
    assert len(set(names)) == 500
    assert all(4 <= len(name) <= 6 for name in names)


def test_an_unknown_environment_is_named():
    with pytest.raises(KeyError, match="nowhere"):
        world("nowhere")
