"""Episodes as JSON lines, for the run folder, the viewer and anyone with `jq`.

Messages are in OpenAI's shape with empty fields left out. The exact token ids stay; the sampler's traces go to a folder
(`traces.py`) and are pointed to, or are left out.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from baleen.agent.episode import ContextEvent, Episode, Timing
from baleen.agent.policy import Completion
from baleen.agent.task import Task
from baleen.agent.traces import TraceFolder
from baleen.chat.messages import Message, ToolSpec


def episode_to_json(episode: Episode, *, traces: TraceFolder | None = None, **extra: Any) -> dict[str, Any]:
    """`episode` as JSON-able values; its traces go to `traces`, or are left out. `extra` (step, advantage...) is laid
    beside its own keys."""
    references = traces.save(episode.completions) if traces else [None] * len(episode.completions)
    record: dict[str, Any] = {
        "task": episode.task.model_dump(mode="json")
        | {"messages": [message_to_json(m) for m in episode.task.messages]},
        "messages": [message_to_json(message) for message in episode.messages],
        "tools": [tool.model_dump(mode="json") for tool in episode.tools],
        "completions": [_completion_to_json(c, r) for c, r in zip(episode.completions, references, strict=True)],
        "status": episode.status,
        "rewards": dict(episode.rewards),
        "seconds": episode.seconds,
        "timings": [asdict(timing) for timing in episode.timings],
    }
    if episode.error:
        record["error"] = episode.error
    if episode.tries > 1:
        record["tries"] = episode.tries
    if episode.context_events:
        record["context_events"] = [_event_to_json(event) for event in episode.context_events]
    if clash := sorted(record.keys() & extra.keys()):
        raise ValueError(
            f"an episode has keys of its own named {', '.join(clash)}; choose other names for the extra ones"
        )
    return {**record, **extra}


def episode_from_json(record: Mapping[str, Any], *, traces: TraceFolder | None = None) -> Episode:
    """The episode of a record; keys that `extra` added are left alone. Its traces are None without `traces`."""
    return Episode(
        task=Task.model_validate(record["task"]),
        messages=tuple(Message.model_validate(message) for message in record["messages"]),
        tools=tuple(ToolSpec.model_validate(tool) for tool in record["tools"]),
        completions=tuple(_completion_from_json(completion, traces) for completion in record["completions"]),
        status=record["status"],
        rewards=dict(record["rewards"]),
        error=record.get("error", ""),
        tries=record.get("tries", 1),
        context_events=tuple(_event_from_json(event) for event in record.get("context_events", ())),
        timings=tuple(Timing(**timing) for timing in record.get("timings", ())),
        seconds=record["seconds"],
    )


def json_line(row: Mapping[str, Any]) -> bytes:
    """One row with its newline, as UTF-8; a half of a surrogate pair, which UTF-8 has no bytes for, is escaped."""
    try:
        return (json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row, separators=(",", ":")) + "\n").encode()


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes all rows or nothing: a temporary file beside `path` that takes its name at the end."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for row in rows:
                file.write(json_line(row))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """The rows of a file, one at a time. Raises `ValueError` with the line's number where one is not JSON."""
    # Only "\n" ends a row: U+2028 and its like may stand inside a string.
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error


def message_to_json(message: Message) -> dict[str, Any]:
    """A message in OpenAI's shape, empty fields left out."""
    return {key: value for key, value in message.model_dump(mode="json").items() if value is not None and value != []}


def _completion_to_json(completion: Completion, trace: str | None = None) -> dict[str, Any]:
    record = {
        "message": message_to_json(completion.message),
        "prompt_tokens": list(completion.prompt_tokens),
        "sampled_tokens": list(completion.sampled_tokens),
        "finish_reason": completion.finish_reason,
        "faults": list(completion.faults),
    }
    return record if trace is None else {**record, "trace": trace}


def _completion_from_json(record: Mapping[str, Any], traces: TraceFolder | None = None) -> Completion:
    reference = record.get("trace")
    return Completion(
        message=Message.model_validate(record["message"]),
        prompt_tokens=tuple(record["prompt_tokens"]),
        sampled_tokens=tuple(record["sampled_tokens"]),
        trace=traces.load(reference) if traces and reference else None,
        finish_reason=record["finish_reason"],
        faults=tuple(record["faults"]),
    )


def _event_to_json(event: ContextEvent) -> dict[str, Any]:
    record: dict[str, Any] = {
        "strategy": event.strategy,
        "at_message": event.at_message,
        "dropped_messages": [list(part) for part in event.dropped],
        "tokens_before": event.tokens_before,
        "tokens_after": event.tokens_after,
    }
    return record if event.summary is None else {**record, "summary": _completion_to_json(event.summary)}


def _event_from_json(record: Mapping[str, Any]) -> ContextEvent:
    return ContextEvent(
        strategy=record["strategy"],
        at_message=record["at_message"],
        dropped=tuple((start, stop) for start, stop in record["dropped_messages"]),
        tokens_before=record["tokens_before"],
        tokens_after=record["tokens_after"],
        summary=_completion_from_json(record["summary"]) if "summary" in record else None,
    )
