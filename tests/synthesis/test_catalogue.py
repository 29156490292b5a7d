"""Properties of a whole catalogue: splits, proofs, demonstrations, storage."""

import asyncio
import time
from collections import Counter
from itertools import pairwise

import pytest

from baleen.agent.episode import Episode
from baleen.agent.task import Task
from baleen.chat.messages import FunctionCall, Message, ToolCall
from baleen.synthesis.arithmetic import Calculator
from baleen.synthesis.catalogue import TaskSet, synthesise
from baleen.synthesis.environments import MissingTool, make_environment, truth
from baleen.synthesis.solution import SolutionError, run_solution
from baleen.synthesis.trajectories import demonstrate, offered_tools
from baleen.synthesis.validate import plain_call, validate


@pytest.fixture(scope="module")
def catalogue() -> TaskSet:
    return synthesise(1, train=300, test=80, unseen=60)


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall(id="x", function=FunctionCall(name=name, arguments=arguments))


def outcome(task: Task, messages: list[Message]) -> float | None:
    environment = make_environment(task, python=Calculator())
    episode = Episode(task=task, messages=tuple(messages), tools=(), completions=(), status="finished")
    return asyncio.run(environment.verify(episode))["outcome"]


def test_the_same_seed_gives_the_same_tasks(catalogue):
    assert synthesise(1, train=300, test=80, unseen=60) == catalogue
    assert synthesise(2, train=10, test=0, unseen=0).train != catalogue.train[:10]


def test_every_task_is_proven(catalogue):
    assert {task.id: faults for task in catalogue.tasks if (faults := validate(task))} == {}


def test_train_and_test_share_neither_question_nor_database_whatever_their_seeds(catalogue):
    others = synthesise(9, train=0, test=200, unseen=50)
    for held_out in (catalogue.test, catalogue.unseen, others.test, others.unseen):
        assert not {task.messages[-1].content for task in catalogue.train} & {t.messages[-1].content for t in held_out}
        seeds = {task.metadata.get("database") for task in catalogue.train} - {None}
        assert not seeds & {task.metadata.get("database") for task in held_out}


def test_unseen_tasks_come_from_the_untrained_environment_alone(catalogue):
    assert {task.environment for task in catalogue.unseen} == {"harbor"}
    assert "harbor" not in {task.environment for task in (*catalogue.train, *catalogue.test)}


def test_every_demonstration_passes_its_verifier_and_keeps_to_its_budget(catalogue):
    for task in catalogue.tasks:
        messages = demonstrate(task)
        assert outcome(task, messages) == 1.0
        assert len(task.messages[-1].content or "") < 130
        for message in messages:
            assert len(message.reasoning_content or "") < 200
            if message.role == "assistant":
                assert bool(message.reasoning_content) == task.thinking


def test_a_demonstration_names_what_each_result_gave(catalogue):
    for task in catalogue.split("train", "tools"):
        if task.thinking:
            messages = demonstrate(task)
            for before, after in pairwise(messages):
                if after.tool_calls and before.role == "tool":
                    assert " is " in (after.reasoning_content or "")
            assert messages[-1].content in (messages[-1].reasoning_content or "")


def test_a_demonstration_repeats(catalogue):
    task = catalogue.train[0]
    assert demonstrate(task) == demonstrate(task)


def test_difficulty_is_the_number_of_calls(catalogue):
    for task in catalogue.tasks:
        if task.domain == "tools":
            assert len(run_solution(task.metadata["solution"], plain_call(task)).steps) == task.difficulty


def test_doing_nothing_and_guessing_without_a_call_fail(catalogue):
    for task in catalogue.tasks:
        assert outcome(task, list(task.messages)) == 0.0
        if task.domain == "tools":
            right = Message(role="assistant", content=truth(task))
            refused = Message(role="tool", content='{"error":"not found"}')
            assert outcome(task, [*task.messages, right]) == 0.0
            assert outcome(task, [*task.messages, refused, right]) == 0.0


def test_an_answer_that_was_cut_off_is_no_answer(catalogue):
    task = catalogue.train[0]
    messages = tuple(demonstrate(task))
    episode = Episode(task=task, messages=messages, tools=(), completions=(), status="truncated")
    assert asyncio.run(make_environment(task, python=Calculator()).verify(episode)) == {"outcome": 0.0}


def test_a_task_set_survives_its_file(catalogue, tmp_path):
    catalogue.save(tmp_path / "tasks.jsonl")
    assert TaskSet.load(tmp_path / "tasks.jsonl") == catalogue
    assert len((tmp_path / "tasks.jsonl").read_text().splitlines()) == len(catalogue.tasks)


def test_statistics_count_every_task(catalogue):
    counts = catalogue.statistics()
    assert sum(count["tasks"] for count in counts.values()) == len(catalogue.tasks)
    for count in counts.values():
        assert count.get("thinking", 0) + count.get("non-thinking", 0) == count["tasks"]


def test_the_mix_is_what_was_asked_for():
    made = synthesise(3, train=400, test=0, unseen=0, domains={"arithmetic": 1.0}, thinking=0.5, difficulties=(1, 2))
    assert {task.domain for task in made.train} == {"arithmetic"}
    assert {task.difficulty for task in made.train} == {1, 2}
    assert 150 < Counter(task.thinking for task in made.train)[True] < 250
    declared = synthesise(3, train=60, test=0, unseen=0, domains=["tools"], invented=0)
    assert {task.environment for task in declared.train} == {"library", "shop", "trips", "clinic"}
    with pytest.raises(ValueError, match="poetry"):
        synthesise(0, train=1, test=0, unseen=0, domains=["poetry"])


def test_arithmetic_without_thinking_is_for_the_interpreter(catalogue):
    short = [t for t in catalogue.tasks if t.domain == "arithmetic" and not t.thinking]
    assert short
    assert {task.environment for task in short} == {"arithmetic-python"}


def test_an_environment_answers_mistakes_and_never_raises(catalogue):
    task = catalogue.unseen[0]
    offered = [spec.name for spec in offered_tools(task)]
    environment = make_environment(task)
    answers = asyncio.run(
        environment.step(
            [call("book_find", "{}"), call(offered[0], "{"), call(offered[0], '{"x":1}'), call("exceeds", '{"a":[]}')]
        )
    )
    assert all((answer.content or "").startswith("error") for answer in answers)
    assert offered[0] in (answers[0].content or "")


def test_a_python_task_without_the_tool_says_what_to_do(catalogue):
    task = next(task for task in catalogue.tasks if task.environment == "arithmetic-python")
    with pytest.raises(MissingTool, match="PythonTool"):
        make_environment(task)


@pytest.mark.parametrize(
    "source",
    [
        "import os\ndef solve(tools):\n    return 1",
        "def solve(tools):\n    return open('x')",
        "def solve(tools):\n    return tools.__class__.__mro__",
        "def solve(tools):\n    return ().__class__",
        "def solve(tools):\n    return [x for x in (1,)]",
        "x = 1",
        "def solve(tools:",
    ],
)
def test_a_solution_may_only_call_tools_and_compute(source):
    with pytest.raises(SolutionError):
        run_solution(source, lambda tool, arguments: 0)


def test_a_step_takes_less_than_a_millisecond(catalogue):
    task = catalogue.unseen[0]
    environment = make_environment(task)
    calls = [call("total", '{"a":1,"b":2}')]

    async def many() -> float:
        await environment.reset(task)
        began = time.process_time()
        for _ in range(200):
            await environment.step(calls)
        return (time.process_time() - began) / 200

    assert asyncio.run(many()) < 0.001
