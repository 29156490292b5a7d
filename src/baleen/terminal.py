"""A model in the terminal: a conversation with tools, and its score on held-out tasks.

`talk` is the loop think, call, observe with a person at the other end. Which of the earlier thoughts the model still
sees is the text format's rule, so the whole history goes to the policy every time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from baleen.agent.environment import InfrastructureError
from baleen.agent.policy import Policy, Sampling
from baleen.agent.python_tool import PythonTool
from baleen.agent.task import Task
from baleen.agent.tools import Tool, Toolbox
from baleen.chat.messages import Message, ToolCall

if TYPE_CHECKING:
    from rich.console import Console

    from baleen.synthesis.world import Database

MAX_TURNS = 12
"""Turns of one answer: a model that only calls and never answers is stopped here."""

ENVIRONMENT_SEED = 1
"""Which of an environment's databases a conversation is about."""


class TerminalError(ValueError):
    """What was asked of the terminal commands cannot be done; the message says why."""


def chat(path: Path, *, thinking: bool, environment: str | None) -> None:
    """Talks with the model in `path` until the input ends or says /quit."""
    from rich.console import Console

    console = Console(highlight=False)
    database = _database(environment) if environment else None
    policy = load_policy(path)
    console.print(f"[dim]{path}. /new begins again, /quit or Ctrl-D ends.[/]")
    if database is not None:
        _introduce(console, database)

    def read() -> str | None:
        try:
            return console.input("[bold]you ▸[/] ")
        except EOFError:
            return None

    asyncio.run(talk(policy, read, console, Sampling(thinking=thinking, max_tokens=512), database))


async def talk(
    policy: Policy,
    read: Callable[[], str | None],
    console: Console,
    sampling: Sampling,
    database: Database | None = None,
) -> list[Message]:
    """The conversation: `read` gives the next question, or None at the end. Returns the messages."""
    from baleen.synthesis.world import tools as world_tools

    messages: list[Message] = []
    async with PythonTool() as python:
        # As in training: an environment offers its own tools, and nothing else does.
        functions: dict[str, Tool] = {"python": python.python}
        toolbox = Toolbox(world_tools(database.world) if database else functions)
        while (text := read()) is not None:
            if text.strip() == "/quit":
                break
            if text.strip() == "/new":
                messages = []
            elif text.strip():
                messages.append(Message(role="user", content=text))
                await _answer(policy, messages, toolbox, console, sampling, database)
    return messages


def load_policy(path: Path) -> Policy:
    """The model folder as a policy. Raises the loader's typed errors."""
    # The engine's layers import torch: not before a model is really wanted.
    from baleen.agent.engine_policy import EnginePolicy
    from baleen.chat.tokenizer import Tokenizer
    from baleen.engine.engine import Engine
    from baleen.model.checkpoint import load_model

    tokenizer = Tokenizer.load(path)
    return EnginePolicy(Engine(load_model(path), tokenizer), tokenizer)


def evaluate(path: Path, *, tasks: int, attempts: int, seed: int) -> None:
    """Prints pass@1 and pass@`attempts` of the model in `path`, by split and domain, on tasks made from `seed`."""
    from rich.console import Console
    from rich.table import Table

    from baleen.evaluation.statistics import pass_at_k_over_tasks
    from baleen.synthesis.catalogue import synthesise

    if tasks < 1 or attempts < 1:
        raise TerminalError("--tasks and --attempts must be at least 1")
    policy = load_policy(path)
    held_out = synthesise(seed, train=0, test=tasks, unseen=tasks).tasks
    passed = asyncio.run(_passes(policy, held_out, attempts, seed))
    table = Table(title=f"{path}, temperature 1.0, {attempts} attempts per task, 95% intervals", title_style="bold")
    ks = sorted({1, attempts})
    for heading in ("split", "domain", "tasks", *(f"pass@{k}" for k in ks)):
        table.add_column(heading, justify="left" if heading in ("split", "domain") else "right")
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for task, scored in zip(held_out, passed, strict=True):
        if scored[0] >= attempts:  # an infrastructure failure is not scored, and is not 0
            groups.setdefault((task.split, task.domain), []).append(scored)
    for (split, domain), scores in sorted(groups.items()):
        cells = []
        for k in ks:
            estimate = pass_at_k_over_tasks(scores, k, seed=seed)
            cells.append(f"{100 * estimate.value:.1f}% ({100 * estimate.low:.1f}-{100 * estimate.high:.1f})")
        table.add_row(split, domain, str(len(scores)), *cells)
    Console().print(table)
    unscored = len(held_out) - sum(len(scores) for scores in groups.values())
    if unscored:
        Console().print(f"{unscored} tasks left out: their environment failed")


async def _passes(policy: Policy, tasks: Sequence[Task], attempts: int, seed: int) -> list[tuple[int, int]]:
    """Attempts scored and passed of each task."""
    from baleen.agent.limits import EpisodeLimits
    from baleen.agent.loop import Rules, run_episodes
    from baleen.agent.policy import turn_seed
    from baleen.synthesis.environments import make_environment

    repeated = [task for task in tasks for _ in range(attempts)]
    samplings = [Sampling(thinking=task.thinking, seed=turn_seed(seed, index)) for index, task in enumerate(repeated)]
    async with PythonTool() as python:
        rules = Rules(EpisodeLimits(turns=MAX_TURNS))
        episodes = await run_episodes(repeated, lambda task: make_environment(task, python), policy, samplings, rules)
    counts = []
    for start in range(0, len(episodes), attempts):
        scored = [episode for episode in episodes[start : start + attempts] if episode.scored]
        counts.append((len(scored), sum(episode.rewards["outcome"] == 1.0 for episode in scored)))
    return counts


async def _answer(
    policy: Policy,
    messages: list[Message],
    toolbox: Toolbox,
    console: Console,
    sampling: Sampling,
    database: Database | None,
) -> None:
    for _ in range(MAX_TURNS):
        completion = await policy.complete(tuple(messages), tuple(toolbox.specs), sampling)
        messages.append(completion.message)
        _show(console, completion.message)
        if completion.finish_reason == "length":
            console.print("[yellow]cut off: the answer reached its longest length[/]")
            return
        if not completion.message.tool_calls:
            return
        for call in completion.message.tool_calls:
            result = await _run_call(toolbox, call, database)
            console.print(f"  ◂ {result.content}", style="green", markup=False)
            messages.append(result)
    console.print(f"[yellow]stopped after {MAX_TURNS} turns without an answer[/]")


async def _run_call(toolbox: Toolbox, call: ToolCall, database: Database | None) -> Message:
    try:
        with database.opened() if database else nullcontext():
            return await toolbox.call(call)
    except InfrastructureError as error:  # a person is here to read it, and the model may go on without the tool
        return Message(role="tool", tool_call_id=call.id, content=f"error: {error}")


def _show(console: Console, message: Message) -> None:
    # markup=False: what a model says is text, whatever brackets it holds.
    if message.reasoning_content:
        console.print(message.reasoning_content.strip(), style="dim italic", markup=False)
    if message.content and message.content.strip():
        console.print(message.content.strip(), markup=False)
    for call in message.tool_calls:
        console.print(f"  ▸ {call.function.name} {call.function.arguments}", style="cyan", markup=False)


def _database(name: str) -> Database:
    from baleen.synthesis.worlds import TRAINED, UNSEEN, database

    try:
        return database(name, ENVIRONMENT_SEED)
    except (KeyError, ValueError) as error:
        known = ", ".join(world.name for world in (*TRAINED, *UNSEEN))
        raise TerminalError(f"no environment {name!r}; known are {known} and invented-<seed>") from error


def _introduce(console: Console, database: Database) -> None:
    """What there is to ask about: each table with its columns and a few keys."""
    for table in database.world.tables:
        columns = ", ".join(field.name for field in table.fields)
        keys = [" ".join(str(row[column]) for column in table.by) for row in database.rows[table.noun][:3]]
        console.print(f"{table.noun}: {columns} of {', '.join(keys)} ...", style="dim", markup=False)
