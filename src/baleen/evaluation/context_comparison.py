"""What each way of managing the context costs and brings, on a search that is longer than the window.

A trail leads from name to name through long reports; about every name there are several, and one of them goes on. The
searcher is scripted: it knows only what it sees, opens reports in an order that the turn's seed draws, and makes no
mistake of its own. So the strategies differ by what they leave in its context and by nothing else. Lengths are exact
tokens of the V3.2 format. What a prefix cache would save is counted over pages, as our engine's cache shares them.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import cast

from baleen.agent.context import SUM_UP, ContextManagement, Strategy, fewest_steps
from baleen.agent.episode import Episode
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episodes
from baleen.agent.policy import Completion, FinishReason, Sampling, turn_seed
from baleen.agent.task import Task
from baleen.agent.tool_environment import ToolEnvironment
from baleen.agent.tools import Toolbox
from baleen.agent.tools.browser import DocumentBrowser
from baleen.agent.tools.documents import DocumentStore
from baleen.chat.encoding import segments
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec
from baleen.chat.tokenizer import Tokenizer

STATIONS, REPORTS, LINES = 3, 4, 36
WINDOW, TURNS, PARALLEL = 10240, 60, 4
PAGE_TOKENS = 64
PARALLEL_FEWEST_STEP = "parallel-fewest-step"
COMPARED: tuple[str, ...] = ("none", "summary", "discard-75", "discard-all", PARALLEL_FEWEST_STEP)

_GOES_ON = re.compile(r"The trail of (\w+) goes on under the name (\w+)\.")
_ENDS = re.compile(r"The trail of \w+ ends here, and its seal is (\w+)\.")
_REACHED = re.compile(r"The trail has reached the name (\w+)\. Read about it: (.*)\.")
_OPENED = re.compile(r"^\[\d+\] .* \((\S+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One strategy over all tasks; means per task. `cached` is the share of prompt tokens that a prefix cache holds."""

    strategy: str
    solved: float
    turns: float
    prompt_tokens: float
    sampled_tokens: float
    cached: float
    managed: float
    """How often the context was made smaller."""


def compare(tasks: int = 50, *, seed: int = 0, strategies: Sequence[str] = COMPARED) -> list[Row]:
    """A row for each strategy; `parallel-fewest-step` holds `PARALLEL` episodes a task and pays for all of them."""
    made, store = trails(tasks, seed)
    policy = Searcher(_tokenizer(store, made))
    rows = []
    for strategy in strategies:
        attempts = PARALLEL if strategy == PARALLEL_FEWEST_STEP else 1
        within = cast(Strategy, "none" if strategy == PARALLEL_FEWEST_STEP else strategy)
        rules = Rules(EpisodeLimits(turns=TURNS), ContextManagement(within, window=WINDOW, summary_tokens=256))
        every = [task for task in made for _ in range(attempts)]
        samplings = [Sampling(seed=turn_seed(seed, index)) for index in range(len(every))]
        environment = _environment(store)
        episodes = asyncio.run(run_episodes(every, environment, policy, samplings, rules))
        groups = [episodes[i : i + attempts] for i in range(0, len(episodes), attempts)]
        rows.append(_row(strategy, groups))
    return rows


def trails(count: int, seed: int = 0) -> tuple[list[Task], DocumentStore]:
    """`count` tasks and the collection in which they are solved. The same seed gives the same ones."""
    draw = random.Random(seed)
    names = iter(draw.sample(range(10**6, 10**7), count * (STATIONS + 1)))
    tasks, documents = [], []
    for number in range(count):
        stations = [f"N{next(names)}" for _ in range(STATIONS)]
        seal = f"S{next(names)}"
        for place, name in enumerate(stations):
            last = place == STATIONS - 1
            told = (
                f"The trail of {name} ends here, and its seal is {seal}."
                if last
                else f"The trail of {name} goes on under the name {stations[place + 1]}."
            )
            right = draw.randrange(REPORTS)
            for report in range(REPORTS):
                key = told if report == right else f"What is told here of {name} leads nowhere."
                documents.append((f"{name}-{report}", f"Report {report} on {name}", _report(draw, name, key)))
        question = f"A trail begins at the name {stations[0]}. Which seal is at its end? Answer with the seal alone."
        tasks.append(
            Task(
                id=f"trail-{seed}-{number}",
                family="search",
                domain="search",
                difficulty=STATIONS,
                messages=(Message(role="user", content=question),),
                environment="trails",
                verifier="seal",
                metadata={"start": stations[0], "seal": seal},
            )
        )
    return tasks, DocumentStore.from_documents(documents)


class Searcher:
    """Follows a trail with the tools of `DocumentBrowser`. All that it knows is in the messages that it is shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._last: tuple[list[Message], list[int]] = ([], [])

    async def complete(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> Completion:
        """The next turn. A prompt that leaves the window no room for it is a truncated turn."""
        prompt = self._ids(messages, tools, sampling)
        message = self._turn(messages, sampling)
        pieces = segments([*messages, message], list(tools), sampling.thinking)
        turn = list(takewhile(lambda piece: piece.sampled, reversed(pieces)))
        sampled, _ = self.tokenizer.encode_segments(reversed(turn))
        if len(prompt) + len(sampled) > WINDOW:
            return Completion(Message(role="assistant", content=""), tuple(prompt), (), None, "length")
        reason: FinishReason = "tool_calls" if message.tool_calls else "stop"
        return Completion(message, tuple(prompt), tuple(sampled), None, reason)

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> int:
        """The prompt's exact length."""
        return len(self._ids(messages, tools, sampling))

    def _ids(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> list[int]:
        """The prompt's tokens; the last one's are kept, as it is counted first and answered then."""
        if self._last[0] != list(messages):
            ids, _ = self.tokenizer.encode_segments(segments(list(messages), list(tools), sampling.thinking))
            self._last = (list(messages), ids)
        return self._last[1]

    def _turn(self, messages: Sequence[Message], sampling: Sampling) -> Message:
        seen = "\n".join(message.content or "" for message in messages)
        if sealed := _ENDS.search(seen):
            return Message(role="assistant", reasoning_content="This is the end.", content=sealed[1])
        name, read = _progress(seen)
        if messages[-1].content == SUM_UP:
            about = " ".join(sorted(read)) or "nothing"
            return Message(role="assistant", content=f"The trail has reached the name {name}. Read about it: {about}.")
        searched = any(name in call.function.arguments for message in messages for call in message.tool_calls)
        unread = sorted({f"{name}-{report}" for report in range(REPORTS)} - read)
        if searched and unread:
            wanted = random.Random(sampling.seed).choice(unread)
            return _calling(
                "open", f'{{"id": "{wanted}"}}', f"I am at {name}; {wanted} is not read yet.", sampling.seed
            )
        return _calling("search", f'{{"query": "{name}", "topn": {REPORTS}}}', f"I am at {name}.", sampling.seed)


def _progress(seen: str) -> tuple[str, set[str]]:
    """The farthest name that is to be seen, and the reports about it that were opened."""
    start = re.search(r"begins at the name (\w+)", seen)
    assert start is not None, "the question is never dropped"
    told = [*_GOES_ON.finditer(seen)]
    notes = _REACHED.search(seen)
    name = told[-1][2] if told else notes[1] if notes else start[1]
    read = {opened[1] for opened in _OPENED.finditer(seen)} | set(notes[2].split() if notes else ())
    return name, {report for report in read if report.startswith(f"{name}-")}


def _calling(tool: str, arguments: str, thought: str, seed: int) -> Message:
    call = ToolCall(id=f"call_{seed}", function=FunctionCall(name=tool, arguments=arguments))
    return Message(role="assistant", reasoning_content=thought, tool_calls=[call])


def _report(draw: random.Random, name: str, key: str) -> str:
    words = ("water", "ship", "north", "harbour", "captain", "winter", "letter", "stone", "island", "storm", "whale")
    lines = [f"{' '.join(draw.choices(words, k=9))} {name}." for _ in range(LINES)]
    lines[draw.randrange(LINES // 2, LINES)] = key
    return "\n".join(lines)


def _environment(store: DocumentStore) -> Callable[[Task], ToolEnvironment]:
    def make(task: Task) -> ToolEnvironment:
        def verify(episode: Episode) -> dict[str, float | None]:
            answered = episode.messages[-1].content if episode.status == "finished" else None
            return {"outcome": float(answered == task.metadata["seal"])}

        return ToolEnvironment(Toolbox(DocumentBrowser(store, num_lines=LINES + 4).tools), verify)

    return make


def _tokenizer(store: DocumentStore, tasks: Sequence[Task]) -> Tokenizer:
    texts = [text for task in tasks[:20] for text in (task.messages[0].content or "", _text(store, task))]
    return Tokenizer.train(texts, 2000)


def _text(store: DocumentStore, task: Task) -> str:
    return "\n".join(document.text for document in store.search(task.metadata["start"], REPORTS))


def _row(strategy: str, groups: Sequence[Sequence[Episode]]) -> Row:
    chosen = [fewest_steps(group) for group in groups]
    every = [episode for group in groups for episode in group]
    prompts = sum(len(completion.prompt_tokens) for episode in every for completion in _completions(episode))
    return Row(
        strategy=strategy,
        solved=sum(episode.rewards["outcome"] or 0.0 for episode in chosen) / len(groups),
        turns=sum(len(episode.completions) for episode in every) / len(groups),
        prompt_tokens=prompts / len(groups),
        sampled_tokens=sum(len(c.sampled_tokens) for e in every for c in _completions(e)) / len(groups),
        cached=sum(map(_cached_tokens, every)) / prompts,
        managed=sum(len(episode.context_events) for episode in every) / len(groups),
    )


def _completions(episode: Episode) -> list[Completion]:
    """Every turn of the policy in its order, those in which it summed up too."""
    summaries = {event.at_message: event.summary for event in episode.context_events if event.summary}
    ordered: list[Completion] = []
    for index, completion in episode.sampled.items():
        if index in summaries:
            ordered.append(summaries[index])
        ordered.append(completion)
    return ordered


def _cached_tokens(episode: Episode) -> int:
    """Prompt tokens that stood in whole pages of an earlier turn of the episode."""
    held: set[int] = set()
    cached = 0
    for completion in _completions(episode):
        pages = _pages(completion.prompt_tokens)
        for page in pages:
            if page not in held:
                break
            cached += PAGE_TOKENS
        held.update(_pages(completion.prompt_tokens + completion.sampled_tokens))
    return cached


def _pages(tokens: Sequence[int]) -> list[int]:
    """One number for each whole page, made of its tokens and all before it."""
    pages, before = [], 0
    for start in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        before = hash((before, tuple(tokens[start : start + PAGE_TOKENS])))
        pages.append(before)
    return pages
