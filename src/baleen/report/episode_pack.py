"""Episodes as a page holds them: an index with one column for each fact, and the episodes in compressed pieces.

The list and its filters read the index alone; a piece is unpacked when one of its episodes is opened or searched. So
ten thousand episodes cost the page little more than their compressed text. What a reader cannot use (token ids) stays
in the file that the episode came from, and what does not fit is left out evenly and counted.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

from baleen.agent.episode import NOT_THE_MODELS
from baleen.chat.messages import Message, Role
from baleen.chat.retention import last_user_index, reasoning_is_kept
from baleen.report.markup import number
from baleen.report.run_folder import Row, as_list, as_row

LONGEST_TEXT = 100_000
LONGEST_EPISODE = 1_000_000
"""Characters of one episode's messages as JSON; those after them are counted, not held."""

PIECE_BYTES = 256 * 1024
"""Bytes that are unpacked together."""

MOST_HELD_BYTES = 512 * 1024**2
"""Of uncompressed episodes while a file is read."""

DEEPEST = 30
HOLDS_TOKENS = ("messages", "completions", "context_events")
"""Keys of a record that are not taken over as they are: token ids, and texts of any length, lie in them."""


class Found(NamedTuple):
    """An episode's record and where it was read."""

    file: str
    line: int
    row: Row


@dataclass(frozen=True)
class EpisodePack:
    """`shown` of `total` episodes. `index` and `pieces` are base64 of zlib-compressed JSON and JSON lines."""

    shown: int
    total: int
    index: str
    pieces: tuple[str, ...]


def pack(found: Iterable[Found], most_bytes: int) -> EpisodePack:
    """Packs what fits into `most_bytes` of a page; where not all fits, episodes evenly spread over the whole are."""
    kept: list[tuple[Row, bytes]] = []
    every, held, total = 1, 0, 0
    for total, one in enumerate(found, start=1):
        if (total - 1) % every:
            continue
        kept.append((_facts(total, one), _body(one)))
        held += len(kept[-1][1])
        if held > MOST_HELD_BYTES:
            kept, every = kept[::2], 2 * every
            held = sum(len(body) for _, body in kept)
    while True:
        packed = _packed(kept, total)
        size = len(packed.index) + sum(len(piece) for piece in packed.pieces)
        if size <= most_bytes or len(kept) <= 1:
            return packed
        fitting = max(1, int(0.95 * len(kept) * most_bytes / size))
        kept = [kept[place * len(kept) // fitting] for place in range(fitting)]


def _packed(kept: Sequence[tuple[Row, bytes]], total: int) -> EpisodePack:
    groups: list[list[bytes]] = []
    rows = []
    size = 0
    for facts, body in kept:
        if not groups or size + len(body) > PIECE_BYTES:
            groups.append([])
            size = 0
        rows.append({**facts, "piece": len(groups) - 1, "place": len(groups[-1])})
        groups[-1].append(body)
        size += len(body)
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    index = json.dumps({"columns": columns, "total": total}, separators=(",", ":")).encode()
    return EpisodePack(len(rows), total, _compressed(index), tuple(_compressed(b"\n".join(group)) for group in groups))


def _facts(place: int, found: Found) -> Row:
    """What the list shows and filters by."""
    row, task = found.row, as_row(found.row.get("task"))
    messages = [as_row(message) for message in as_list(row.get("messages"))]
    completions = [as_row(completion) for completion in as_list(row.get("completions"))]
    asked = next((message.get("content") for message in messages if message.get("role") == "user"), "")
    status = str(row.get("status") or "")
    return {
        "number": place,
        "file": found.file,
        "task": _short(task.get("id")),
        "asked": _short(asked if isinstance(asked, str) else _said(asked), 160),
        **{name: _short(task.get(name)) for name in ("domain", "family", "environment")},
        "checkpoint": _short(row.get("checkpoint")),
        "status": _short(status),
        "outcome": None if status in NOT_THE_MODELS else number(as_row(row.get("rewards")).get("outcome")),
        "turns": sum(message.get("role") == "assistant" for message in messages),
        "tokens": sum(len(as_list(completion.get("sampled_tokens"))) for completion in completions),
        "seconds": number(row.get("seconds")),
    }


def _body(found: Found) -> bytes:
    """The episode as one JSON line, without token ids (their numbers stay) and without what it says twice."""
    messages, cut = _fitting(as_list(found.row.get("messages")))
    episode = {
        **{key: _clean(value) for key, value in found.row.items() if key not in HOLDS_TOKENS},
        "messages": messages,
        "completions": [_counted(as_row(completion)) for completion in as_list(found.row.get("completions"))],
    }
    if events := [as_row(event) for event in as_list(found.row.get("context_events"))]:
        episode["context_events"] = [_clean({**event, "summary": _summary(event)}) for event in events]
    if isinstance(episode.get("task"), dict):
        episode["task"].pop("messages", None)  # the episode opens with them
    held = {"episode": episode, "file": found.file, "line": found.line, "cut": cut, "dropped_at": dropped_at(episode)}
    # A lone surrogate has no bytes; written with a backslash it is JSON's own escape for it.
    return json.dumps(held, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def dropped_at(episode: Row) -> dict[int, int]:
    """Assistant message -> the later message at which its reasoning left the context, by the thinking rule."""
    roles = [str(as_row(message).get("role")) for message in as_list(episode.get("messages"))]
    opening = [index for index, role in enumerate(roles) if _opens(role)]
    thinking = as_row(episode.get("task")).get("thinking") is not False
    dropped = {}
    for index, role in enumerate(roles):
        said = as_row(episode["messages"][index]).get("reasoning_content")
        if role == "assistant" and thinking and isinstance(said, str) and said.strip():
            later = next((at for at in opening if not reasoning_is_kept(index, at, thinking)), None)
            if later is not None:
                dropped[index] = later
    return dropped


@lru_cache(maxsize=64)
def _opens(role: str) -> bool:
    """Whether a message of that role ends a context, as the thinking rule has it; `role` may be any text."""
    return last_user_index([Message.model_construct(role=cast(Role, role))]) == 0


def _fitting(messages: Sequence[Any]) -> tuple[list[Any], int]:
    """The messages that fit, cleaned, and how many do not."""
    fitting: list[Any] = []
    size = 0
    for message in messages:
        cleaned = _clean(message)
        size += len(json.dumps(cleaned, ensure_ascii=False))
        if size > LONGEST_EPISODE and fitting:
            break
        fitting.append(cleaned)
    return fitting, len(messages) - len(fitting)


def _counted(completion: Row) -> Row:
    lengths = {name: len(as_list(completion.get(f"{name}_tokens"))) for name in ("prompt", "sampled")}
    rest = {key: completion.get(key) for key in ("finish_reason", "faults") if completion.get(key)}
    return {"prompt_length": lengths["prompt"], "sampled_length": lengths["sampled"], **_clean(rest)}


def _summary(event: Row) -> Row | None:
    summary = as_row(event.get("summary"))
    return {"message": summary.get("message"), **_counted(summary)} if summary else None


def _clean(value: Any, depth: int = 0) -> Any:
    """The value as JSON can hold it (no NaN), with texts of bounded length and objects of bounded depth."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else _cut(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict | list) and depth > DEEPEST:
        return "… (nested deeper)"
    if isinstance(value, dict):
        return {key: _clean(item, depth + 1) for key, item in value.items()}
    return [_clean(item, depth + 1) for item in value] if isinstance(value, list) else value


def _cut(text: str) -> str:
    return f"{text[:LONGEST_TEXT]} … ({len(text) - LONGEST_TEXT:,} more characters)"


def _said(parts: Any) -> str:
    """The text of a content that is a list of parts."""
    return " ".join(str(as_row(part).get("text", "")) for part in as_list(parts))


def _short(value: Any, longest: int = 80) -> str:
    line = " ".join(str("" if value is None else value)[: 4 * longest].split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def _compressed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode()
