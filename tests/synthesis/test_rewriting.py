"""Plans that are worked out by rewriting: every result takes the place of what it answers."""

import random

import pytest

from baleen.synthesis.expressions import Choice, Plus, Read, solution, sql
from baleen.synthesis.rewriting import plans, rewrite
from baleen.synthesis.solution import Step, run_solution
from baleen.synthesis.templates import SHAPES, Draw
from baleen.synthesis.worlds import LIBRARY, database

BOOK, AUTHOR = LIBRARY.table("book"), LIBRARY.table("author")
AGE = Read(AUTHOR, "age", Read(BOOK, "author", ("TaRo",)))


def test_a_chain_and_a_sum_are_worked_out_from_the_left():
    steps = [
        Step("book_find", {"title": "TaRo"}, {"author": "a17", "pages": 120}),
        Step("author_find", {"id": "a17"}, {"name": "MeLu", "city": "c20", "age": 38}),
        Step("add", {"a": 38, "b": 40}, {"result": 78}),
    ]
    assert plans(Plus(AGE, 40), LIBRARY, steps) == [
        "book TaRo > author > age plus 40",
        "author a17 > age plus 40",
        "38 plus 40",
        "78",
    ]


@pytest.mark.parametrize(("verdict", "left"), [("more", "author a17 > age"), ("less", "city c20 > area")])
def test_the_branches_of_a_choice_wait_for_the_verdict(verdict, left):
    choice = Choice(Read(BOOK, "pages", ("TaRo",)), 100, AGE, Read(LIBRARY.table("city"), "area", ("c20",)))
    read = {("book_find", ("TaRo",)): {"author": "a17", "pages": 120}}
    assert rewrite(choice, LIBRARY, read) == Choice(120, 100, choice.then, choice.other)
    decided = read | {("compare", (120, 100)): {"result": verdict}}
    assert plans(rewrite(choice, LIBRARY, decided), LIBRARY, []) == [left]


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4])
def test_what_is_left_after_the_last_call_is_the_answer(difficulty):
    rows = database("library", 5)
    for seed in range(20):
        expression = random.Random(seed).choice(SHAPES[difficulty])(Draw(rows, random.Random(seed))).expression
        steps = run_solution(solution(expression, LIBRARY), rows.call).steps
        written = plans(expression, LIBRARY, steps)
        assert written[-1] == str(rows.query(f"select {sql(expression)}"))
        assert len(written) == len(steps) + 1
