"""`python -m baleen.benchmarks.tau2 CHECKOUT`: what tau2-bench's tasks give to one who does all, and to one who does
nothing.

Every task's reference actions are replayed through our environment and loop, by an agent that thinks before each turn
and asks before it changes anything, and judged by tau2-bench's own evaluator. Beside it stand three agents that do not
work: what they get is what the benchmark gives for nothing. Each prompt of the replay is written in the V3.2 format,
and read for which reasoning it still shows. The checkout is yours; nothing of it is shipped here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from baleen.agent.adapters.tau2 import Tau2Environment, gold_actions, tau2_tasks, tau2_user
from baleen.agent.adapters.tau2_package import Tau2Missing, tau2_domain, tau2_module
from baleen.agent.episode import Episode
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episode
from baleen.agent.policy import Completion, Policy, Sampling
from baleen.agent.task import Task
from baleen.agent.user import ScriptedUser, UserSimulator
from baleen.chat.encoding import encode
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec

DOMAINS = ("airline", "retail")
AGENTS = ("gold", "refuses", "transfers", "silent")
AT_ONCE = 8
REFUSAL = "I am sorry, I cannot help you with that."
OPENING = "Hello, I need your help."
TRANSFER = "transfer_to_human_agents"
RULES = Rules(limits=EpisodeLimits(turns=100), user=tau2_user)
SAMPLING = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Row:
    """One agent on one domain's tasks."""

    domain: str
    agent: str
    tasks: int
    full: int
    """Tasks with outcome 1."""

    unscored: int
    """Of them, those with a part that only a model could judge, which was left out of the outcome."""

    failed: tuple[str, ...]
    """Tasks whose episode ended in a fault of the world's; never scored."""

    missed: tuple[str, ...]
    calls: int
    user_turns: int
    reasoning_kept: int
    """Over all prompts: earlier turns since the last user message whose reasoning the prompt shows."""

    reasoning_dropped: int
    """Over all prompts: turns before the last user message whose reasoning the prompt shows no more."""

    reasoning_wrong: int
    seconds: float


def measure(
    checkout: str | Path | None = None,
    domains: Sequence[str] = DOMAINS,
    *,
    split: str = "base",
    most: int | None = None,
) -> list[Row]:
    """Every agent on every task of `domains` (the first `most` of each). Raises `Tau2Missing`, and `ValueError` for
    an unknown domain or split."""
    rows = []
    for domain in domains:
        for agent in AGENTS:
            rows.append(asyncio.run(_row(checkout, domain, split, most, agent)))
            print(f"{domain}, {agent}: {rows[-1].full} of {rows[-1].tasks}, {rows[-1].seconds:.0f} s", file=sys.stderr)
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """The rows as a table, and below it what each agent is."""
    table = Table("domain", "agent", "full reward", "unscored part", "faults", "calls", "user turns", "kept", "dropped")
    for row in rows:
        cells = (row.unscored, len(row.failed), row.calls, row.user_turns, row.reasoning_kept, row.reasoning_dropped)
        table.add_row(row.domain, row.agent, f"{row.full} of {row.tasks}", *map(str, cells))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        "gold: replays the reference actions; refuses: one sentence, no call; transfers: one call of "
        f"{TRANSFER}, then the sentence; silent: an empty answer.\nunscored part: full, but for assertions in natural "
        "language that only a model could judge.\nkept, dropped: reasoning of earlier turns in the prompts, over tool "
        f"results and at a new user turn; {sum(row.reasoning_wrong for row in rows)} against the rule."
    )
    for row in rows:
        if row.failed or (row.agent == "gold" and row.missed):
            console.print(f"{row.domain}, {row.agent}: faults {row.failed or 'none'}, missed {row.missed or 'none'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table. 1 when a gold replay misses a task or reasoning is shown against the rule."""
    parser = argparse.ArgumentParser(prog="baleen.benchmarks.tau2", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("checkout", nargs="?", type=Path, help="a checkout of tau2-bench (default: TAU2_BENCH)")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), metavar="NAME")
    parser.add_argument("--most", type=int, metavar="N", help="only the first N tasks of each domain")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows are written too")
    options = parser.parse_args(arguments)
    try:
        rows = measure(options.checkout, options.domains, most=options.most)
    except (Tau2Missing, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    print_table(rows)
    whole = all(row.full == row.tasks for row in rows if row.agent == "gold")
    return 0 if whole and not any(row.reasoning_wrong for row in rows) else 1


class GoldPlan:
    """Both sides of a conversation in which the reference actions of one task are done: the agent's policy, and the
    user who confirms, and does what is theirs to do."""

    def __init__(self, theirs: Any, changes: Callable[[str], bool]) -> None:
        self._left: deque[Any] = deque(gold_actions(theirs))
        self._changes = changes
        self._to_say = " ".join(theirs.evaluation_criteria.communicate_info or []) or "All done."
        self._confirmed = False

    async def complete(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> Completion:
        """The next reference action; a question where the user has to act or to confirm; at last what is to be said."""
        thought = f"<thought {len(messages)}>"
        action = self._left[0] if self._left else None
        if action is None:
            return _turn(thought, self._to_say)
        if action.requestor == "user" or (self._changes(action.name) and not self._confirmed):
            return _turn(thought, "Please confirm, or do it on your device.")
        self._left.popleft()
        self._confirmed = False
        return _turn(thought, call=_call(action, len(messages)))

    def user(self, world: Tau2Environment) -> UserSimulator:
        """The other side."""
        return _GoldUser(self, world)

    def users_turn(self, world: Tau2Environment, messages: Sequence[Message]) -> Message | None:
        """Confirms, and does the user's actions that are next; None when the plan was already done."""
        if not any(message.role == "user" for message in messages):
            return Message(role="user", content=OPENING)
        if not self._left:
            return None
        self._confirmed = True
        while self._left and self._left[0].requestor == "user":
            action = self._left.popleft()
            call = Message(role="assistant", tool_calls=[_call(action, len(self._left))])
            world.act_as_user(call, before=len(messages))
        return Message(role="user", content="Yes, done.")


@dataclass(frozen=True)
class _GoldUser:
    plan: GoldPlan
    world: Tau2Environment

    async def next(self, messages: Sequence[Message]) -> Message | None:
        return self.plan.users_turn(self.world, messages)


class ReasoningWatch:
    """A policy that writes each prompt in the V3.2 format before `policy` answers, and counts the earlier turns'
    reasoning in it: `kept` since the last user message, `dropped` before it, or `wrong`, against that rule."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.counted: Counter[str] = Counter()

    async def complete(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> Completion:
        """What the policy answers."""
        prompt = encode(messages, tools, sampling.thinking)
        last_user = max(index for index, message in enumerate(messages) if message.role == "user")
        for index, message in enumerate(messages):
            if message.reasoning_content:
                shown, due = message.reasoning_content in prompt, index > last_user
                self.counted["wrong" if shown != due else "kept" if shown else "dropped"] += 1
        return await self._policy.complete(messages, tools, sampling)


class IdleAgent:
    """Does no work: `refuses`, `transfers` or is `silent`."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    async def complete(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> Completion:
        """One turn, or two with a transfer."""
        if self._kind == "transfers" and messages[-1].role == "user":
            arguments = json.dumps({"summary": "The customer needs help."})
            return _turn("", call=ToolCall(id="0", function=FunctionCall(name=TRANSFER, arguments=arguments)))
        return _turn("", "" if self._kind == "silent" else REFUSAL)


async def _row(checkout: str | Path | None, domain: str, split: str, most: int | None, agent: str) -> Row:
    began = time.perf_counter()
    tasks = tau2_tasks(domain, split, checkout)[:most]
    toolkit = tau2_module("registry", checkout).registry.get_env_constructor(domain)().tools
    free = asyncio.Semaphore(AT_ONCE)
    reasoning: Counter[str] = Counter()

    async def run(task: Task) -> Episode:
        async with free:
            if agent != "gold":
                return await _episode(task, IdleAgent(agent), lambda world: ScriptedUser((OPENING,)), checkout)
            theirs = tau2_domain(domain, split, checkout)[task.metadata["tau2"]["id"]]
            plan = GoldPlan(theirs, lambda name: toolkit.has_tool(name) and toolkit.tool_mutates_state(name))
            watch = ReasoningWatch(plan)
            episode = await _episode(task, watch, plan.user, checkout)
            reasoning.update(watch.counted)
            return episode

    episodes = await asyncio.gather(*map(run, tasks))
    full = [one for one in episodes if one.scored and one.rewards["outcome"] == 1.0]
    return Row(
        domain=domain,
        agent=agent,
        tasks=len(tasks),
        full=len(full),
        unscored=sum(None in one.rewards.values() for one in full),
        failed=tuple(f"{one.task.id}: {one.status}: {one.error}" for one in episodes if not one.scored),
        missed=tuple(one.task.id for one in episodes if one.scored and one.rewards["outcome"] != 1.0),
        calls=sum(one.calls for one in episodes),
        user_turns=sum(message.role == "user" for one in episodes for message in one.messages),
        reasoning_kept=reasoning["kept"],
        reasoning_dropped=reasoning["dropped"],
        reasoning_wrong=reasoning["wrong"],
        seconds=time.perf_counter() - began,
    )


async def _episode(
    task: Task, policy: Policy, user: Callable[[Tau2Environment], UserSimulator], checkout: str | Path | None
) -> Episode:
    return await run_episode(task, lambda task: Tau2Environment(user, checkout), policy, SAMPLING, RULES)


def _call(action: Any, number: int) -> ToolCall:
    return ToolCall(
        id=f"{action.requestor}-{number}",
        function=FunctionCall(name=action.name, arguments=json.dumps(action.arguments)),
    )


def _turn(thought: str, words: str | None = None, call: ToolCall | None = None) -> Completion:
    message = Message(
        role="assistant", content=words, reasoning_content=thought or None, tool_calls=[call] if call else []
    )
    return Completion(message=message, finish_reason="tool_calls" if call else "stop")


if __name__ == "__main__":
    sys.exit(main())
