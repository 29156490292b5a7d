"""A task: what is asked, in which environment, and how the outcome is judged. One JSON line each."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from baleen.chat.messages import Message


class Task(BaseModel):
    """One task. `environment` and `verifier` are references that `synthesis` resolves; `metadata` holds what they
    need."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    family: str
    """general, search, code or interpreter (the report's four), here also reasoning and alignment."""

    domain: str
    """The reward domain of the mixed stage: tools, arithmetic, alignment."""

    difficulty: int = Field(ge=1)
    """The number of dependent steps of the reference solution."""

    split: str = "train"
    """train, test (unseen task, trained environment) or unseen (an environment that is never trained on)."""

    messages: tuple[Message, ...]
    environment: str
    verifier: str
    thinking: bool = True
    metadata: dict[str, Any] = Field(default_factory=dict)
