"""Episodes in ATIF, Harbor's agent trajectory format (v1.7), one JSON document each, for other people's viewers.

A tool result has no step of its own there: it is the observation of the agent's step that called. Arguments must be an
object, so text that is none goes to the call's `extra`. What ATIF has no word for (rewards, status, context events)
goes to the `extra` of the whole.
"""

from __future__ import annotations

import json
import math
from typing import Any

from baleen.agent.context import notes_message
from baleen.agent.episode import ContextEvent, Episode
from baleen.agent.policy import Completion
from baleen.chat.messages import Message, ToolCall

SCHEMA_VERSION = "ATIF-v1.7"


class AtifError(ValueError):
    """An episode that ATIF cannot hold."""


def episode_to_atif(episode: Episode, *, version: str, model: str | None = None) -> dict[str, Any]:
    """The document of one episode. `version` is the agent's, `model` the policy's name. Raises `AtifError` for an
    episode in which nothing was said."""
    steps: list[dict[str, Any]] = []
    sampled = episode.sampled
    for index, message in enumerate(episode.messages):
        for event in episode.context_events:
            if event.at_message == index and event.summary is not None:
                steps.append(_context_step(event))
        if message.role == "tool":
            _observe(steps, message)
        elif message.role == "assistant":
            steps.append(_agent_step(message, sampled.get(index), index))
        else:
            source = "user" if message.role == "user" else "system"
            steps.append({"source": source, "message": message.content or ""})
    if not steps:
        raise AtifError(f"nothing was said in the episode of task {episode.task.id}: ATIF needs at least one step")
    for number, step in enumerate(steps, 1):
        step["step_id"] = number
    agent: dict[str, Any] = {"name": "baleen", "version": version}
    if model:
        agent["model_name"] = model
    if episode.tools:
        agent["tool_definitions"] = [tool.model_dump(mode="json") for tool in episode.tools]
    return {
        "schema_version": SCHEMA_VERSION,
        "agent": agent,
        "steps": [{"step_id": step["step_id"], **step} for step in steps],
        "final_metrics": _totals(episode, len(steps)),
        "extra": _own(episode),
    }


def _agent_step(message: Message, completion: Completion | None, index: int) -> dict[str, Any]:
    step: dict[str, Any] = {"source": "agent", "message": message.content or ""}
    if completion is not None:
        step["llm_call_count"] = 1
    if message.reasoning_content is not None:
        step["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        step["tool_calls"] = [_call(call, f"call_{index}_{i}") for i, call in enumerate(message.tool_calls)]
    if completion is not None:
        step["metrics"] = _metrics(completion)
        if completion.faults:
            step["extra"] = {"faults": list(completion.faults)}
    return step


def _call(call: ToolCall, otherwise: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"tool_call_id": call.id or otherwise, "function_name": call.function.name}
    try:
        arguments = call.function.parsed()
        json.dumps(arguments, allow_nan=False)  # Python reads NaN, which is no JSON
        return {**entry, "arguments": arguments}
    except (ValueError, RecursionError):
        return {**entry, "arguments": {}, "extra": {"arguments_text": call.function.arguments}}


def _observe(steps: list[dict[str, Any]], message: Message) -> None:
    """Lays a result beside the call that asked for it; by position where the ids do not say."""
    if not steps or steps[-1]["source"] != "agent":
        raise AtifError("a tool message that no assistant turn called for cannot be written as ATIF")
    results = steps[-1].setdefault("observation", {"results": []})["results"]
    ids = [call["tool_call_id"] for call in steps[-1].get("tool_calls", [])]
    result: dict[str, Any] = {"content": message.content or ""}
    asked = message.tool_call_id if message.tool_call_id in ids else next(iter(ids[len(results) :]), None)
    results.append(result if asked is None else {"source_call_id": asked, **result})


def _context_step(event: ContextEvent) -> dict[str, Any]:
    assert event.summary is not None
    told = {"strategy": event.strategy, "tokens_before": event.tokens_before, "tokens_after": event.tokens_after}
    return {
        "source": "user",
        "message": notes_message(event.summary).content or "",
        "extra": {"context_management": told},
    }


def _metrics(completion: Completion) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "prompt_tokens": len(completion.prompt_tokens),
        "completion_tokens": len(completion.sampled_tokens),
    }
    if completion.prompt_tokens:
        metrics["prompt_token_ids"] = list(completion.prompt_tokens)
        metrics["completion_token_ids"] = list(completion.sampled_tokens)
    if completion.trace is not None:
        logprobs = [float(value) for value in completion.trace.logprobs]
        if all(map(math.isfinite, logprobs)):
            metrics["logprobs"] = logprobs
    return metrics


def _totals(episode: Episode, steps: int) -> dict[str, Any]:
    return {
        "total_prompt_tokens": sum(len(completion.prompt_tokens) for completion in episode.completions),
        "total_completion_tokens": sum(len(completion.sampled_tokens) for completion in episode.completions),
        "total_steps": steps,
    }


def _own(episode: Episode) -> dict[str, Any]:
    own: dict[str, Any] = {
        "task": episode.task.id,
        "status": episode.status,
        "rewards": dict(episode.rewards),
        "seconds": episode.seconds,
        "tries": episode.tries,
    }
    if episode.error:
        own["error"] = episode.error
    if episode.context_events:
        own["context_events"] = [
            {"strategy": e.strategy, "at_message": e.at_message, "dropped_messages": [list(part) for part in e.dropped]}
            for e in episode.context_events
        ]
    return own
