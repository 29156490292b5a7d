"""A request's sampling fields as the engine's `SamplingParams`, one for each of its choices."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from baleen.chat.grammar import GrammarSpec
from baleen.engine.params import SamplingParams
from baleen.server.errors import ApiError
from baleen.server.protocol import SamplingFields

SEEDS = 2**63
"""As many as `agent/policy.py` draws for its turns: a served turn is then the engine's own."""


def sampling_params(
    body: SamplingFields,
    *,
    max_tokens: int,
    top_logprobs: int = 0,
    grammar: GrammarSpec | None = None,
    banned: Sequence[int] = (),
    vocab_size: int,
) -> list[SamplingParams]:
    """One for each of the `n` choices; they differ in their seed alone. `banned` are tokens that never come."""
    bias = _bias(body.logit_bias or {}, vocab_size) | dict.fromkeys(banned, -100.0)
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
    }
    seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS
    try:
        params = SamplingParams(
            **{name: value for name, value in given.items() if value is not None},
            top_k=max(body.top_k or 0, 0),
            logit_bias=tuple(bias.items()),
            max_tokens=max_tokens,
            min_tokens=body.min_tokens or 0,
            seed=seed,
            stop_ids=tuple(body.stop_token_ids or ()),
            stop=body.stop_strings,
            ignore_end=bool(body.ignore_eos),
            top_logprobs=top_logprobs,
            trace=body.traced,
            grammar=grammar,
        )
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_sampling") from error
    return [replace(params, seed=seed + index) for index in range(body.n or 1)]


def _bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    bias = {}
    for name, value in given.items():
        if not name.isdecimal() or int(name) >= vocab_size:
            raise ApiError(400, f"logit_bias: {name[:20]!r} is no token id", param="logit_bias", code="invalid_token")
        bias[int(name)] = float(value)
    return bias
