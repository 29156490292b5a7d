"""Arithmetic and alignment problems, and the verdict on their answers."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.environment import InfrastructureError
from baleen.agent.python_tool import PythonTool
from baleen.agent.tools import tool_spec
from baleen.synthesis.alignment import FORMS, ITEMS, LANGUAGES, LEXICON, expected, is_right, wording
from baleen.synthesis.arithmetic import Calculator, calculate, interpreted, mental

SEEDS = st.integers(0, 2**32)
DIFFICULTIES = st.integers(1, 4)


@given(SEEDS, DIFFICULTIES)
def test_a_mental_problem_is_worked_out_in_as_many_steps_as_it_is_difficult(seed, difficulty):
    problem = mental(random.Random(seed), difficulty)
    steps = problem.metadata["steps"]
    assert len(steps) == problem.difficulty == difficulty
    assert steps[-1].endswith(problem.answer)
    assert 0 <= int(problem.answer) < 20
    assert str(calculate(problem.key)) == problem.answer
    for step in steps:
        left, right = step.split(" so ")[0].split("=")
        assert calculate(left) == int(right)


@given(SEEDS, DIFFICULTIES)
def test_an_interpreted_problem_has_as_many_operations_as_it_is_difficult(seed, difficulty):
    problem = interpreted(random.Random(seed), difficulty)
    assert sum(problem.key.count(operator) for operator in "+-*") == difficulty
    assert calculate(problem.key) == int(problem.answer)
    assert 20 <= int(problem.answer) <= 9999


@pytest.mark.parametrize("wrong", ["__import__('os')", "2**99", "a+1", "1/0", "1.5+2", "(1", "1%0", "True+1"])
def test_only_arithmetic_is_calculated(wrong):
    with pytest.raises(ValueError, match="calculate"):
        calculate(wrong)


def test_the_calculator_shows_the_schema_of_the_real_tool():
    assert tool_spec(Calculator().python) == tool_spec(PythonTool().python)


def test_the_calculator_prints_what_the_real_tool_prints():
    async def both(code: str) -> tuple[str, str]:
        async with PythonTool() as real:
            return await Calculator().python(code), await real.python(code)

    try:
        mine, real = asyncio.run(both("print(37*12-5+(7%4))"))
    except InfrastructureError as error:
        pytest.skip(f"no sandbox here: {error}")
    assert mine == real


def test_the_lexicon_has_every_item_in_every_language():
    assert {len(words) for words in LEXICON.values()} == {len(ITEMS)}
    assert set(LEXICON) == set(LANGUAGES)


@given(SEEDS, st.integers(1, 2))
def test_only_the_asked_language_and_form_are_right(seed, difficulty):
    problem = wording(random.Random(seed), difficulty)
    wanted = problem.metadata
    items, right = wanted["items"], problem.answer
    assert is_right(right, items, wanted["language"], wanted["form"])
    for language in LANGUAGES:
        for form in FORMS:
            other = expected(items, language, form)
            assert is_right(other, items, wanted["language"], wanted["form"]) == (other == right)
    for near in ("", right + ".", f"The answer is {right}", right.swapcase(), f" {right} {right}"):
        assert not is_right(near, items, wanted["language"], wanted["form"])


def test_json_may_be_spaced_but_not_extended():
    assert expected(["5"], "fr", "parentheses") == "(cinq)"
    assert is_right('{ "answer": "cinq" }', ["5"], "fr", "json")
    for wrong in ('{"answer":"cinq","x":1}', '{"answer":"x","answer":"cinq"}', '["cinq"]', '{"answer":"cinq"', "null"):
        assert not is_right(wrong, ["5"], "fr", "json")
