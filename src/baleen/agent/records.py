"""Episodes as JSON lines, for the run folder, the viewer and anyone with `jq`.

Messages are in OpenAI's shape with empty fields left out. The exact token ids stay; the sampler's traces, which are
large and of use only to the training step that follows, do not.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from baleen.agent.episode import Episode
from baleen.agent.policy import Completion
from baleen.agent.task import Task
from baleen.chat.messages import Message, ToolSpec


def episode_to_json(episode: Episode, **extra: Any) -> dict[str, Any]:
    """`episode` without its traces as JSON-able values; `extra` (step, advantage...) is laid beside its own keys."""
    record: dict[str, Any] = {
        "task": episode.task.model_dump(mode="json")
        | {"messages": [_message_to_json(m) for m in episode.task.messages]},
        "messages": [_message_to_json(message) for message in episode.messages],
        "tools": [tool.model_dump(mode="json") for tool in episode.tools],
        "completions": [_completion_to_json(completion) for completion in episode.completions],
        "status": episode.status,
        "rewards": dict(episode.rewards),
        "seconds": episode.seconds,
    }
    if clash := sorted(record.keys() & extra.keys()):
        raise ValueError(
            f"an episode has keys of its own named {', '.join(clash)}; choose other names for the extra ones"
        )
    return {**record, **extra}


def episode_from_json(record: Mapping[str, Any]) -> Episode:
    """The episode of a record; keys that `extra` added are left alone. Its traces are None."""
    return Episode(
        task=Task.model_validate(record["task"]),
        messages=tuple(Message.model_validate(message) for message in record["messages"]),
        tools=tuple(ToolSpec.model_validate(tool) for tool in record["tools"]),
        completions=tuple(_completion_from_json(completion) for completion in record["completions"]),
        status=record["status"],
        rewards=dict(record["rewards"]),
        seconds=record["seconds"],
    )


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes all rows or nothing: a temporary file beside `path` that takes its name at the end."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
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


def _message_to_json(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.model_dump(mode="json").items() if value is not None and value != []}


def _completion_to_json(completion: Completion) -> dict[str, Any]:
    return {
        "message": _message_to_json(completion.message),
        "prompt_tokens": list(completion.prompt_tokens),
        "sampled_tokens": list(completion.sampled_tokens),
        "finish_reason": completion.finish_reason,
        "faults": list(completion.faults),
    }


def _completion_from_json(record: Mapping[str, Any]) -> Completion:
    return Completion(
        message=Message.model_validate(record["message"]),
        prompt_tokens=tuple(record["prompt_tokens"]),
        sampled_tokens=tuple(record["sampled_tokens"]),
        finish_reason=record["finish_reason"],
        faults=tuple(record["faults"]),
    )
