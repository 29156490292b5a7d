"""Episodes for the viewer to show, made by the types that the loop makes them of."""

from __future__ import annotations

import json
import random

from baleen.agent.episode import ContextEvent, Episode, Timing
from baleen.agent.policy import Completion
from baleen.agent.records import episode_to_json
from baleen.agent.task import Task
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=https://evil.example/a.png onerror='window.hacked = 1'>"
    "<!--<script> &lt;b&gt; \u2028 line \u202e gnirts \u2066 \x00 \x1b[31m ]]> ${1} `x`"
)
TOOLS = (
    ToolSpec(function={"name": "find_loan", "description": "Looks a loan up by its title.", "parameters": {}}),
    ToolSpec(function={"name": "python", "description": "Runs a program.", "parameters": {}}),
)


def task(identity="library-1", asked="Who has borrowed 'The Whales'?", **fields):
    """A task with one question."""
    fields = {"family": "general", "domain": "tools", "difficulty": 2, "environment": "library"} | fields
    opening = (Message(role="system", content="You are a clerk."), Message(role="user", content=asked))
    return Task(id=identity, messages=opening, verifier="equals", metadata={"expected": "Tarivo"}, **fields)


def call(number, name="find_loan", **arguments):
    """One call with its id."""
    return ToolCall(id=f"call_{number}", function=FunctionCall(name=name, arguments=json.dumps(arguments)))


def asks(*calls, thought=""):
    """An assistant turn that calls."""
    return Message(role="assistant", reasoning_content=thought or None, tool_calls=list(calls))


def says(content, thought=""):
    """An assistant turn that answers."""
    return Message(role="assistant", content=content, reasoning_content=thought or None)


def answer(number, content):
    """The tool message for call `number`."""
    return Message(role="tool", tool_call_id=f"call_{number}", content=content)


def user(content):
    """A message of the user."""
    return Message(role="user", content=content)


def record(*later, of=None, status="finished", rewards=None, extra=None, **fields):
    """The JSON of an episode in which `later` follows the task's opening."""
    of = of or task()
    turns = [message for message in later if message.role == "assistant"]
    completions = tuple(
        Completion(message, tuple(range(100 + 50 * place)), tuple(range(20 + place)), faults=_faults(message))
        for place, message in enumerate(turns)
    )
    timings = tuple(Timing(0.5 + place, 0.25) for place in range(len(turns)))
    rewards = {"outcome": 1.0, "language": None} if rewards is None else rewards
    episode = Episode(
        of, (*of.messages, *later), TOOLS, completions, status, rewards, timings=timings, seconds=3.0, **fields
    )
    return episode_to_json(episode, **(extra or {}))


def several_turns():
    """Two user turns: parallel calls, a fault, an error, a long result, and reasoning that the second turn drops."""
    return record(
        asks(call(1, title="The Whales"), call(2, title="The Krill"), thought="First I look both of them up."),
        answer(1, '{"member": "Tarivo", "serial": 12345678901234567890, "price": 1.50}'),
        answer(2, "error: no loan of 'The Krill'; titles are case-sensitive"),
        asks(call(3, "python", code="for i in range(3):\n    print(i)\n" * 12), thought="Now a program. " * 30),
        answer(3, "0\n1\n2\n" * 200),
        says("Tarivo has it. <fault>", thought="Done; I answer."),
        user("And until when?"),
        says("Until the second of April.", thought="The due date stood in the first result."),
        of=task("library-several"),
        extra={"checkpoint": "mixed_rl", "attempt": 2, "seed": 7},
    )


def managed():
    """A long search whose context was made smaller twice."""
    rounds = []
    for number in range(12):
        rounds += [
            asks(call(number, query=f"whale {number}"), thought=f"Search number {number}."),
            answer(number, f"Result {number}. " * 40),
        ]
    summing = Completion(says("So far: nothing in 0 to 5.", thought="Let me sum up."), tuple(range(90)), (1, 2))
    events = (
        ContextEvent("discard-75", 14, ((2, 12),), 104_000, 31_000),
        ContextEvent("summary", 24, ((12, 24),), 105_000, 2_000, summing),
    )
    return record(
        *rounds, says("Found.", "At last."), of=task("search-long", domain="search", family="search",
        environment="library"), context_events=events, rewards={"outcome": 0.25},
    )  # fmt: skip


def failed_world():
    """The infrastructure broke: not scored, with the reason."""
    return record(
        asks(call(1, title="x"), thought="Look."), of=task("clinic-broken", environment="clinic"),
        status="infrastructure_error", rewards={"outcome": None}, error="the sandbox was killed", tries=3,
    )  # fmt: skip


def hostile():
    """Every text that a model, a tool or a task can write tries to be something else."""
    row = record(
        asks(call(1, HOSTILE, **{HOSTILE: HOSTILE}), thought=HOSTILE), answer(1, HOSTILE), says(HOSTILE),
        of=task("hostile " + HOSTILE, HOSTILE, domain=HOSTILE, environment=HOSTILE, family="general"),
        rewards={"outcome": 0.0, HOSTILE: 1.0}, error=HOSTILE, extra={"checkpoint": HOSTILE},
    )  # fmt: skip
    row["status"] = HOSTILE
    row["messages"][-1]["content"] += "\ud800 half \udfff"
    return row


def many(count, chance=None):
    """`count` varied episodes of a few turns."""
    chance = chance or random.Random(3)
    statuses = ["finished"] * 8 + ["turn_limit", "truncated", "time_limit", "infrastructure_error"]
    for index in range(count):
        domain, environment = chance.choice([("tools", "library"), ("tools", "clinic"), ("search", "documents")])
        status = chance.choice(statuses)
        words = " ".join(chance.choices(WORDS, k=60))
        steps = []
        for number in range(chance.randint(1, 6)):
            steps.append(asks(call(number, title=chance.choice(WORDS), page=number), thought=f"Step {number}. {words}"))
            steps.append(answer(number, json.dumps({"found": chance.choices(WORDS, k=30), "page": number})))
        outcome = None if status == "infrastructure_error" else float(chance.random() < 0.6)
        yield record(
            *steps, says(f"The answer is {chance.choice(WORDS)}."),
            of=task(f"{environment}-{index}", f"Where is the {words[:90]}?", domain=domain, environment=environment),
            status=status, rewards={"outcome": outcome, "length": 0.02},
        )  # fmt: skip


FIRST, LAST = ("whale", "krill", "baleen", "fluke", "pod", "calf"), ("", "s", "-like", "er")
WORDS = [first + last for first in FIRST for last in LAST]


def _faults(message):
    return ("missing_end",) if "<fault>" in (message.content or "") else ()
