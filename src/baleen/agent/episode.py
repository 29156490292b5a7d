"""An episode: the task, what was said, the completion behind each assistant turn, and how it ended.

`run_episode` is the loop think, call, observe. Reasoning stays in the messages; which of it the model still sees is the
text format's rule (`chat/retention.py`), not this loop's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from baleen.agent.policy import Completion
from baleen.agent.task import Task
from baleen.chat.messages import Message, ToolSpec

Status = Literal["finished", "truncated", "turn_limit", "infrastructure_error"]


@dataclass(frozen=True)
class Episode:
    """One finished attempt. `completions[i]` stands behind the i-th assistant message."""

    task: Task
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    completions: tuple[Completion, ...]
    status: Status
    rewards: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def scored(self) -> bool:
        """Whether the outcome counts: infrastructure failures and verifiers that did not run do not."""
        return self.status != "infrastructure_error" and self.rewards.get("outcome") is not None
