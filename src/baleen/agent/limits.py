"""How far an episode may go. Every limit has a status of its own, so that a record says which one was met."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.agent.environment import InfrastructureError


@dataclass(frozen=True)
class EpisodeLimits:
    """None means no limit. Raises `ValueError` for a limit that no episode could keep."""

    turns: int = 32
    """Assistant turns; past it `turn_limit`."""

    calls: int | None = None
    """Tool calls of the whole episode; a turn that would exceed it is not run: `call_limit`."""

    tokens: int | None = None
    """Sampled tokens of the whole episode: `token_limit`."""

    seconds: float | None = None
    """From reset to the last turn, the policy's waiting included: `time_limit`."""

    step_seconds: float | None = 900.0
    """One reset, step, verdict or close of the environment. Tools have limits of their own, so an environment that
    takes longer hangs: `infrastructure_error`."""

    def __post_init__(self) -> None:
        for name in ("turns", "calls", "tokens", "seconds", "step_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"EpisodeLimits.{name} must be positive, got {value}")


class EnvironmentHangs(InfrastructureError):
    """An environment did not answer within `step_seconds`."""
