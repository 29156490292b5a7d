"""What may be asked of the engine: how a request is sampled, how an engine is built. No torch: servers import it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from baleen.chat.grammar import GrammarSpec

MAX_SEED = 1 << 64
LEAST_TEMPERATURE = 0.001
MOST = 10_000.0
"""Of temperature, bias and penalties: no logit leaves the range of fp32 by them."""


class EngineError(ValueError):
    """A request or an engine that can never run, and why."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled. temperature 0 takes the most likely token; the other defaults cut and change nothing.

    The order is that of other engines: bias and penalties on the logits, then the grammar, then temperature, then
    top_k, top_p and min_p. Raises `EngineError` for values that make no sense.
    """

    temperature: float = 1.0
    """0 takes the most likely token; what lies between 0 and 0.001 counts as 0.001."""

    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""

    min_p: float = 0.0
    """Tokens less likely than this share of the most likely one are cut."""

    presence_penalty: float = 0.0
    """Taken from the logit of every token that was sampled before."""

    frequency_penalty: float = 0.0
    """The same, times how often it was sampled."""

    repetition_penalty: float = 1.0
    """Divides positive logits, multiplies negative ones, of tokens in prompt or completion."""

    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, added to its logit)."""

    max_tokens: int = 256
    min_tokens: int = 0
    """Before so many, no token that ends the completion can be sampled."""

    seed: int = 0
    n: int = 1
    """Completions of one prompt in `Engine.generate`; the i-th has the seed `seed + i`."""

    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion, beside the model's own."""

    stop: tuple[str, ...] = ()
    """Texts that end it."""

    ignore_end: bool = False
    """The model's own end token does not end the completion."""

    top_logprobs: int = 0
    """So many of the most likely tokens are reported with each sampled one."""

    trace: bool = False
    """Return experts and selected positions; log-probabilities and kept sets are always there."""

    grammar: GrammarSpec | None = None
    """What the completion must look like."""

    def __post_init__(self) -> None:
        _require(0 <= self.temperature <= MOST, "temperature", self.temperature, f"between 0 and {MOST:g}")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", LEAST_TEMPERATURE)
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (all) or more")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        _require(0.01 <= self.repetition_penalty <= 100, "repetition_penalty", self.repetition_penalty, "0.01 to 100")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(abs(getattr(self, name)) <= MOST, name, getattr(self, name), f"at most {MOST:g} either way")
        for token, bias in self.logit_bias:
            fits = token >= 0 and (bias == -math.inf or abs(bias) <= MOST)
            _require(fits, "logit_bias", (token, bias), f"a token and at most {MOST:g} either way, or -inf")
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "at most max_tokens")
        _require(0 <= self.seed < MAX_SEED, "seed", self.seed, "in 64 bits, not negative")
        _require(self.n >= 1, "n", self.n, "at least 1")
        _require(0 <= self.top_logprobs <= 20, "top_logprobs", self.top_logprobs, "at most 20")
        _require(all(self.stop), "stop", self.stop, "texts that are not empty")

    @property
    def cuts(self) -> bool:
        """Whether it is sampled from a part of the tokens (the most likely one alone is not meant)."""
        cuts = self.top_p < 1 or self.top_k > 0 or self.min_p > 0 or self.grammar is not None
        return self.temperature > 0 and cuts

    @property
    def shifts(self) -> bool:
        """Whether logits change with what was said."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias or self.min_tokens)


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built. Raises `EngineError` for values that make no sense."""

    max_running: int = 64
    """Sequences that run at once; others wait."""

    max_tokens: int | None = None
    """Tokens of the longest sequence, completion included; None is the model's longest context."""

    memory_bytes: int | None = None
    """What the cache may take, traces included. None: room for `max_running` of the longest sequences, but no more than
    a quarter of the free memory. What is no cache is not in it: logits, finished traces, and the traces that requests
    keep while their pages are taken from them."""

    page_tokens: int = 64
    chunk_tokens: int = 2048
    """Prompt tokens of one forward, at most."""

    admit_every: int = 1
    """While others run, requests are admitted after so many steps or more: 1 answers soonest; many episodes, whose
    turns end one by one, get through faster when their prompts are prefilled a few together."""

    prefill_share: float | None = None
    """Prompts may make decoding take at most so many times as long, over some steps; None prefills at full speed."""

    decode_seconds: float = 0.01
    """Where compiled loops run the network, sequences decode about so long before anything else is looked at: requests
    that came or went, what streams are to be told. 0 looks after every token."""

    drafts: bool = False
    """Draft with the model's multi-token-prediction layer; the tokens stay the same."""

    threads: int | None = None
    """Of the engine's process, where it has one of its own; None leaves one core for the server where there are more
    than two."""

    dtype: str = "float32"
    """Of the parameters that an engine's process loads: float32 or bfloat16."""

    traces: bool = True
    """Record experts and selected positions of every token, so that requests can ask for them. Costs
    `2 (moe layers x experts per token + layers x index_topk)` bytes a token (4 beyond 32,768 positions)."""

    def __post_init__(self) -> None:
        for name in ("max_running", "page_tokens", "chunk_tokens", "admit_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("max_tokens", "memory_bytes", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1, or None")
        share = self.prefill_share
        _require(share is None or share > 1, "prefill_share", share, "above 1, or None")
        _require(self.decode_seconds >= 0, "decode_seconds", self.decode_seconds, "0 or more")
        _require(self.dtype in ("float32", "bfloat16"), "dtype", self.dtype, "float32 or bfloat16")


def default_threads() -> int:
    """What `EngineOptions.threads` comes to when it is None."""
    cores = len(os.sched_getaffinity(0))
    return max(cores - 1, min(cores, 2))


def _require(holds: bool, name: str, value: object, what: str) -> None:
    if not holds:
        raise EngineError(f"{name} is {value}, and must be {what}")
