"""A recorded episode once more: the same turns, in a living environment.

What the policy said comes from the record, what the world answers is new. So a verdict can be repeated, an environment
be checked for giving the same answers twice, and a changed one be tried on old episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from baleen.agent.context import ContextManagement
from baleen.agent.environment import Environment
from baleen.agent.episode import Episode
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episode
from baleen.agent.policy import Completion, Sampling
from baleen.agent.task import Task
from baleen.agent.user import UserSimulator
from baleen.chat.messages import Message, ToolSpec


class ReplayError(ValueError):
    """The world answered otherwise than in the record; the message says where."""


class ReplayPolicy:
    """Repeats the turns of `episode`. With `exact`, what comes between them must be as it was, else `ReplayError`."""

    def __init__(self, episode: Episode, *, exact: bool = True) -> None:
        self.episode, self.exact = episode, exact
        self._turns = list(episode.sampled)
        self._opened = sum(message.role == "assistant" for message in episode.messages) - len(self._turns)

    async def complete(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> Completion:
        """The recorded turn that comes after as many as `messages` holds."""
        turn = sum(message.role == "assistant" for message in messages) - self._opened
        if turn >= len(self._turns):
            raise ReplayError(f"the record has {len(self._turns)} turns, and the episode goes on")
        before = self.episode.messages[: self._turns[turn]]
        if self.exact and tuple(messages) != before:
            pairs = enumerate(zip(messages, before, strict=False))
            place = next((i for i, (new, old) in pairs if new != old), min(len(messages), len(before)))
            raise ReplayError(f"before turn {turn} message {place} is not the recorded one")
        return self.episode.completions[turn]


class _RecordedUser:
    """Says what the users of the record said."""

    def __init__(self, episode: Episode) -> None:
        self._messages = episode.messages

    async def next(self, messages: Sequence[Message]) -> Message | None:
        """The message that followed in the record."""
        following = self._messages[len(messages) : len(messages) + 1]
        return following[0] if following and following[0].role == "user" else None


async def replay(episode: Episode, make_environment: Callable[[Task], Environment], *, exact: bool = True) -> Episode:
    """`episode` lived through again, and judged anew. Raises `ReplayError` (see `ReplayPolicy`)."""

    def user(task: Task, environment: Environment) -> UserSimulator:
        return _RecordedUser(episode)

    # A turn that a limit ended has to be ended again; a record without turns has nothing to say.
    turns = max(1, len(episode.completions))
    rules = Rules(EpisodeLimits(turns=turns), ContextManagement(), user=user)
    again = await run_episode(episode.task, make_environment, ReplayPolicy(episode, exact=exact), Sampling(), rules)
    return replace(again, context_events=episode.context_events)
