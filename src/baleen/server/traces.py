"""What a choice tells about its tokens: log-probabilities in OpenAI's two forms, and traces for trainers.

The fields and their encodings are described in `protocol.py`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baleen.chat.tokenizer import Tokenizer
from baleen.engine.sequence import Generation
from baleen.engine.service import Chunk
from baleen.engine.trace import Trace
from baleen.server.protocol import SamplingFields

LEAST_LOGPROB = -9999.0
"""OpenAI's number for minus infinity, which JSON has not."""


class TokenNames:
    """Spells tokens in log-probabilities."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._bytes, self._as_ids = tokenizer.token_bytes, as_ids

    def name(self, token: int) -> str:
        """The token's text, or `token_id:17`."""
        return f"token_id:{token}" if self._as_ids else self._bytes(token).decode("utf-8", "replace")

    def length(self, token: int) -> int:
        """The characters that the token takes in a text."""
        return len(self._bytes(token).decode("utf-8", "replace"))

    def chat(self, chunk: Chunk) -> list[dict[str, Any]]:
        """The entries of `logprobs.content`."""
        tops: Iterable[Sequence[tuple[int, float]]] = chunk.top or [()] * len(chunk.tokens)
        return [
            {**self._entry(token, value), "top_logprobs": [self._entry(*alternative) for alternative in top]}
            for token, value, top in zip(chunk.tokens, chunk.logprobs, tops, strict=True)
        ]

    def text(self, chunk: Chunk, offset: int) -> dict[str, Any]:
        """The lists of `logprobs` of a text completion that already has `offset` characters."""
        names = [self.name(token) for token in chunk.tokens]
        tops: Iterable[Sequence[tuple[int, float]]] = chunk.top or [()] * len(chunk.tokens)
        values = [max(value, LEAST_LOGPROB) for value in chunk.logprobs]
        offsets = np.cumsum([offset, *map(self.length, chunk.tokens)])
        return {
            "tokens": names,
            "token_logprobs": values,
            "top_logprobs": [
                {self.name(other): max(likely, LEAST_LOGPROB) for other, likely in top} | {name: value}
                for name, value, top in zip(names, values, tops, strict=True)
            ],
            "text_offset": offsets[:-1].tolist(),
        }

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        spelled = list(self._bytes(token))
        return {"token": self.name(token), "logprob": max(value, LEAST_LOGPROB), "bytes": spelled}


def trace_fields(body: SamplingFields, generation: Generation | None) -> dict[str, Any]:
    """What the request asked to know of a finished choice, beside its tokens. Empty where the engine tells nothing."""
    if generation is None:
        return {}
    fields: dict[str, Any] = {}
    trace, npy = generation.trace, body.trace_encoding == "npy"
    versions = trace.versions.tolist() if trace is not None and trace.versions is not None else []
    if versions:
        fields["weight_version"] = versions[-1]
        if body.return_token_ids or len(set(versions)) > 1:
            fields["weight_versions"] = versions
    if body.return_routed_experts:
        fields["routed_experts"] = _array(trace.experts if trace else None, npy)
    if body.return_selected_positions:
        fields["selected_positions"] = _array(trace.selected if trace else None, npy)
    if body.return_sampling_mask:
        fields["sampling_mask"] = _mask(trace, npy)
    return fields


def _mask(trace: Trace | None, npy: bool) -> Any:
    if trace is None or trace.kept_ids is None or trace.kept_offsets is None:
        return None
    if npy:
        return [kept.tolist() for kept in np.split(trace.kept_ids, trace.kept_offsets[1:-1])]
    return {"ids": _array(trace.kept_ids, npy), "offsets": _array(trace.kept_offsets, npy)}


def _array(values: NDArray[Any] | None, npy: bool) -> Any:
    if values is None:
        return None
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if npy:
        file = io.BytesIO()
        np.save(file, little)
        return base64.b64encode(file.getvalue()).decode("ascii")
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": data}
