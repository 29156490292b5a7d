"""What an operator may choose: where to listen, who may come in, and every limit, in one closed model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MEBIBYTE = 1024 * 1024

PREFILL_SHARE = 2.5
"""While prompts are read, answers take at most so many times as long."""


class SettingsError(ValueError):
    """A setting that makes no sense; the message names it."""


class ServerSettings(BaseModel):
    """How the server behaves. The defaults suit one machine and callers that are trusted but may make mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, **values: Any) -> ServerSettings:
        """The settings. Raises `SettingsError`."""
        try:
            return cls(**values)
        except ValidationError as error:
            wrong = error.errors()[0]
            name = "--" + str(wrong["loc"][0]).replace("_", "-")
            raise SettingsError(f"{name} {wrong['input']}: {wrong['msg']}") from error

    host: str = "127.0.0.1"
    """The address to listen on. Give an `api_key` before you open it to a network: trainers' endpoints load weights."""

    port: int = Field(8000, ge=0, le=65535)
    """0 takes a free one."""

    model_name: str | None = None
    """The name that clients ask for; None is the name of the model's folder."""

    api_key: str | None = Field(None, min_length=1)
    """Asked for as `Authorization: Bearer KEY` everywhere but on `/` and `/health`; None asks for nothing."""

    thinking: bool = True
    """Whether the model thinks when the request does not say."""

    max_body_bytes: int = Field(8 * MEBIBYTE, ge=1)
    max_waiting: int = Field(256, ge=1)
    """Sequences that may wait for the engine; more are refused with 429."""

    max_choices: int = Field(16, ge=1)
    """The largest `n`."""

    request_seconds: float = Field(600.0, gt=0)
    """A request that takes longer is ended."""

    drain_seconds: float = Field(30.0, ge=0)
    """How long running requests may go on after SIGTERM."""

    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call the server; none by default."""
