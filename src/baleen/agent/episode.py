"""An episode: the task, what was said, the completion behind each assistant turn, and how it ended.

Reasoning stays in the messages; which of it the model still saw is the text format's rule (`chat/retention.py`), and
what a context manager took away is told by `context_events`. So the record is always whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from baleen.agent.policy import Completion
from baleen.agent.task import Task
from baleen.chat.messages import Message, ToolSpec

Status = Literal[
    "finished",
    "truncated",
    "turn_limit",
    "call_limit",
    "token_limit",
    "time_limit",
    "tool_error",
    "policy_error",
    "infrastructure_error",
]
"""`finished`: answered. `truncated`: a turn was cut off, or no room was left. The limits: `EpisodeLimits`. These are
the model's own doing and are scored. `tool_error`: a tool or the environment raised what it never should, a fault to
report. `policy_error`: the policy's server failed. `infrastructure_error`: the world failed. These are not the model's
doing: never scored, and tried again."""

STATUSES: tuple[Status, ...] = get_args(Status)
NOT_THE_MODELS: frozenset[Status] = frozenset({"tool_error", "policy_error", "infrastructure_error"})


@dataclass(frozen=True)
class Timing:
    """Seconds of one turn."""

    policy_seconds: float
    tools_seconds: float = 0.0


@dataclass(frozen=True)
class ContextEvent:
    """One time that the context was made smaller. The messages stay in the episode; the policy saw them no more."""

    strategy: str
    at_message: int
    """It happened before this message of the episode was sampled."""

    dropped: tuple[tuple[int, int], ...]
    """Ranges [start, stop) of the episode's messages that the policy does not see from here on."""

    tokens_before: int
    """The prompt's exact length that made it necessary."""

    tokens_after: int
    summary: Completion | None = None
    """The turn in which the policy summed up what was dropped; shown to it as a user message in its place."""


@dataclass(frozen=True)
class Episode:
    """One ended attempt. `completions` are the policy's turns in order; `sampled` says which messages they are. Two
    episodes that differ only in how long they took are equal."""

    task: Task
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    completions: tuple[Completion, ...]
    status: Status
    rewards: dict[str, float | None] = field(default_factory=dict)
    """None is not scored, which is not 0."""

    error: str = ""
    """What failed, where `status` is one of `NOT_THE_MODELS`."""

    tries: int = 1
    """How often it was begun; more than once where the world failed."""

    context_events: tuple[ContextEvent, ...] = ()
    timings: tuple[Timing, ...] = field(default=(), compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def scored(self) -> bool:
        """Whether the outcome counts: infrastructure failures and verifiers that did not run do not."""
        return self.status not in NOT_THE_MODELS and self.rewards.get("outcome") is not None

    @property
    def sampled(self) -> dict[int, Completion]:
        """The completion behind each message that the policy gave, by the message's index. Assistant messages that an
        environment opens the conversation with come before them and have none."""
        spoken = [index for index, message in enumerate(self.messages) if message.role == "assistant"]
        given = spoken[max(0, len(spoken) - len(self.completions)) :]
        return dict(zip(given, self.completions, strict=False))

    @property
    def calls(self) -> int:
        """Tool calls that were made."""
        return sum(len(message.tool_calls) for message in self.messages)
