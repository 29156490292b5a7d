"""`GET /metrics`: what Prometheus reads, under vLLM's names with our prefix, in a registry of its own.

The engine counts in its own process; its numbers are fetched when somebody asks, so that a step costs nothing. What
only the server can know (who waited how long for what) is observed here, once per request and choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

GAUGES = {
    "num_requests_running": ("running", "Sequences in the running batch."),
    "num_requests_waiting": ("waiting", "Sequences that wait for a place."),
    "kv_cache_pages": ("pages_total", "Pages of the latent cache."),
    "kv_cache_pages_used": ("pages_used", "Pages that running sequences hold."),
    "kv_cache_pages_cached": ("pages_cached", "Pages kept for prompts to come."),
    "weight_version": ("version", "The version of the weights."),
    "engine_paused": ("paused", "1 while a trainer holds the engine."),
}
COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens."),
    "generation_tokens": ("generated_tokens", "Sampled tokens."),
    "prefix_cache_queries": ("prompt_tokens", "Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("cached_tokens", "Prompt tokens found there."),
    "spec_decode_num_draft_tokens": ("drafted_tokens", "Tokens that were drafted."),
    "spec_decode_num_accepted_tokens": ("accepted_tokens", "Drafted tokens that stood."),
    "num_preemptions": ("preemptions", "Sequences that had to give their pages back."),
    "engine_steps": ("steps", "Steps of the engine."),
}
"""Our name: the engine's, and what it counts."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 131072)


class Metrics:
    """The server's own counts, and the engine's as last told."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._engine: Mapping[str, float] = {}
        self.registry.register(self)
        self.requests = self._counter("http_requests", "Requests by path and status.", "path", "status")
        self.finished = self._counter("request_success", "Choices that ended.", "finished_reason")
        self.first_token = self._histogram("time_to_first_token_seconds", "Until the first token came.", SECONDS)
        self.per_token = self._histogram("time_per_output_token_seconds", "Between tokens, on average.", SECONDS)
        self.latency = self._histogram("e2e_request_latency_seconds", "Until the answer was complete.", SECONDS)
        self.prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.generated = self._histogram("request_generation_tokens", "Sampled tokens of a choice.", TOKENS)

    def text(self, engine: Mapping[str, float]) -> bytes:
        """Prometheus's text form; `engine` is what `Service.stats` says now."""
        self._engine = engine
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """The engine's part, for the registry."""
        for name, (key, words) in GAUGES.items():
            yield GaugeMetricFamily(f"baleen_{name}", words, self._engine.get(key, 0.0))
        for name, (key, words) in COUNTERS.items():
            yield CounterMetricFamily(f"baleen_{name}", words, self._engine.get(key, 0.0))
        used, total = self._engine.get("pages_used", 0.0), self._engine.get("pages_total", 0.0)
        yield GaugeMetricFamily("baleen_kv_cache_usage_perc", "Used pages, 1 for all.", used / total if total else 0.0)

    def request_ended(self, *, seconds: float, first_token: float | None, prompt: int, choices: Iterable[int]) -> None:
        """One answer is out; `choices` are their tokens, `first_token` the seconds until the first one."""
        counts = list(choices)
        self.latency.observe(seconds)
        self.prompt.observe(prompt)
        for count in counts:
            self.generated.observe(count)
        if first_token is None:
            return
        self.first_token.observe(first_token)
        if max(counts) > 1:
            self.per_token.observe((seconds - first_token) / (max(counts) - 1))

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"baleen_{name}", words, labels, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"baleen_{name}", words, buckets=buckets, registry=self.registry)
