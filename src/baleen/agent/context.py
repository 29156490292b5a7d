"""Context management: what is taken out of the context when it nears the window's end (arXiv 2512.02556).

    none          nothing: the episode ends when no room is left
    summary       the policy sums up what it did; the task and that summary are what it goes on from
    discard-75    the oldest 75% of the rounds are dropped (a round: an assistant turn with calls, and their results)
    discard-all   every round is dropped: it starts over, knowing the task alone

`parallel-fewest-step` is a strategy over episodes, not within one: several independent ones, and the one that needed
the fewest steps is taken (`fewest_steps`). Lengths are the exact tokens of the prompt that would be sampled after; what
was dropped stays in the episode, and an event tells when it went.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from baleen.agent.episode import ContextEvent, Episode
from baleen.agent.policy import Completion, CountingPolicy, Policy, Sampling
from baleen.chat.messages import Message, ToolSpec

Strategy = Literal["none", "summary", "discard-75", "discard-all"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
OLDEST_SHARE = 0.75

SUM_UP = (
    "The context is nearly full and will be cleared. Write down what you must not lose, for yourself: what was asked, "
    "what you have found out and where, what turned out to be wrong, and what to do next. Call no tool."
)
SUMMED_UP = "Earlier work on this task was cleared from the context. Your own notes about it:\n\n"


class ContextError(ValueError):
    """Context management cannot work like this."""


@dataclass(frozen=True)
class ContextManagement:
    """Which strategy, and when. Raises `ContextError` for an unknown strategy or an impossible window."""

    strategy: Strategy = "none"
    window: int = 128 * 1024
    """Tokens that the model can attend to."""

    trigger: float = 0.8
    """Share of the window that a prompt may fill."""

    summary_tokens: int = 4096
    """Longest summary."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ContextError(f"unknown context strategy {self.strategy!r}; known are {', '.join(STRATEGIES)}")
        if self.window < 1 or not 0 < self.trigger <= 1:
            raise ContextError("the context's window must be positive and its trigger in (0, 1]")

    @property
    def most_tokens(self) -> int:
        """The longest prompt that is left alone."""
        return int(self.window * self.trigger)


class Context:
    """What the policy sees of one episode's messages. The list itself belongs to the episode and only grows."""

    def __init__(self, management: ContextManagement, opening: int) -> None:
        self.management, self.opening = management, opening
        self.events: list[ContextEvent] = []

    def visible(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` without what was dropped, the last summary in its place."""
        if not self.events:
            return list(messages)
        dropped = self._dropped()
        kept = [message for i, message in enumerate(messages) if i >= self.opening and i not in dropped]
        summary = next((event.summary for event in reversed(self.events) if event.summary), None)
        notes = [] if summary is None else [notes_message(summary)]
        return [*messages[: self.opening], *notes, *kept]

    async def fit(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], policy: Policy, sampling: Sampling
    ) -> list[Message]:
        """The messages to sample after, made smaller first where they are too long and there is something to drop.
        Raises `ContextError` for a policy that cannot count."""
        shown = self.visible(messages)
        if self.management.strategy == "none":
            return shown
        if not isinstance(policy, CountingPolicy):
            raise ContextError(f"{type(policy).__name__} has no count_tokens, which context management needs")
        tokens = await policy.count_tokens(shown, tools, sampling)
        while tokens > self.management.most_tokens and (rounds := self._rounds(messages)):
            summary = None
            if self.management.strategy == "discard-75":
                rounds = rounds[: math.ceil(OLDEST_SHARE * len(rounds))]
            elif self.management.strategy == "summary":
                summary = await self._sum_up(shown, tools, policy, sampling)
            event = ContextEvent(
                self.management.strategy, len(messages), tuple(_joined(rounds)), tokens, tokens, summary
            )
            self.events.append(event)
            shown = self.visible(messages)
            tokens = await policy.count_tokens(shown, tools, sampling)
            self.events[-1] = replace(event, tokens_after=tokens)
        return shown

    def _dropped(self) -> set[int]:
        return {i for event in self.events for start, stop in event.dropped for i in range(start, stop)}

    def _rounds(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """The rounds that are still shown, oldest first, as ranges of `messages`."""
        dropped = self._dropped()
        rounds: list[tuple[int, int]] = []
        for i in range(self.opening, len(messages)):
            if i in dropped:
                continue
            if messages[i].role == "assistant" and messages[i].tool_calls:
                rounds.append((i, i + 1))
            elif messages[i].role == "tool" and rounds and rounds[-1][1] == i:
                rounds[-1] = (rounds[-1][0], i + 1)
        return rounds

    async def _sum_up(
        self, shown: Sequence[Message], tools: Sequence[ToolSpec], policy: Policy, sampling: Sampling
    ) -> Completion:
        # The instruction is a user message: the reasoning before it is dropped by the thinking rule, its results stay.
        asked = [*shown, Message(role="user", content=SUM_UP)]
        return await policy.complete(asked, tools, replace(sampling, max_tokens=self.management.summary_tokens))


def notes_message(summary: Completion) -> Message:
    """A summary as the policy sees it. Without an answer its reasoning is all there is."""
    text = summary.message.content or summary.message.reasoning_content or ""
    return Message(role="user", content=SUMMED_UP + text.strip())


def fewest_steps(episodes: Sequence[Episode]) -> Episode:
    """Of independent attempts at one task the finished one with the fewest turns; the first where none finished.
    Raises `ContextError` for none at all."""
    if not episodes:
        raise ContextError("fewest_steps chooses among episodes; it was given none")
    finished = [episode for episode in episodes if episode.status == "finished"]
    return min(finished, key=lambda episode: len(episode.completions), default=episodes[0])


def _joined(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Touching ranges as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return iter(joined)
