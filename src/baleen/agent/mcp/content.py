"""What MCP says, as what a model reads: a tool's listing as a compact spec, a result's parts as one text.

Messages here hold text alone, so whatever is no text (images, sound, files) leaves a line that says what it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mcp import types

from baleen.chat.messages import ToolSpec

LONGEST_NAME = 64
"""Characters. OpenAI's limit for a function's name; MCP allows more, and other characters."""


def tool_spec(tool: types.Tool, name: str) -> ToolSpec:
    """`tool` as it is offered under `name`: no titles, no schema dialect, nothing that only a validator reads."""
    schema = _compact(tool.input_schema)
    if schema.get("additionalProperties") is False:
        del schema["additionalProperties"]
    function = {"name": name, "description": (tool.description or tool.title or "").strip()}
    parameters = {"type": "object", "properties": {}} | schema
    return ToolSpec(function={key: value for key, value in function.items() if value} | {"parameters": parameters})


def callable_names(names: Sequence[str]) -> dict[str, str]:
    """Names that every model API takes, each for one of `names`, in their order: letters, digits, `_` and `-`, at most
    64 characters, no two alike."""
    given: dict[str, str] = {}
    for name in names:
        wanted = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:LONGEST_NAME] or "tool"
        free, number = wanted, 1
        while free in given:
            number += 1
            ending = f"_{number}"
            free = wanted[: LONGEST_NAME - len(ending)] + ending
        given[free] = name
    return given


def result_text(result: types.CallToolResult, longest: int) -> str:
    """A call's result as one text of about `longest` characters at most; a failed call's starts with `error:`."""
    parts = [content_text(part) for part in result.content]
    if result.structured_content is not None and not _is_told(result.structured_content, parts):
        parts.append(json.dumps(result.structured_content, ensure_ascii=False, separators=(",", ":")))
    text = "\n".join(parts)
    if len(text) > longest:
        text = f"{text[:longest]}\n[cut here: {len(text) - longest} more characters]"
    if result.is_error and not text.startswith("error:"):
        return f"error: {text or 'the tool failed without a word'}"
    return text


def content_text(part: types.ContentBlock) -> str:
    """One part of a result or prompt: its text, or a line in its place."""
    if isinstance(part, types.TextContent):
        return part.text
    if isinstance(part, types.ImageContent | types.AudioContent):
        return f"[{part.type}: {part.mime_type}, {_bytes(part.data)} bytes, not shown]"
    if isinstance(part, types.ResourceLink):
        return f"[resource {part.name}: {part.uri}]"
    return resource_text([part.resource])


def resource_text(contents: Iterable[types.TextResourceContents | types.BlobResourceContents]) -> str:
    """What a resource holds, as one text."""
    return "\n".join(
        one.text
        if isinstance(one, types.TextResourceContents)
        else f"[resource {one.uri}: {one.mime_type or 'unknown type'}, {_bytes(one.blob)} bytes, not shown]"
        for one in contents
    )


def _bytes(base64_text: str) -> int:
    return len(base64_text) * 3 // 4 - base64_text[-2:].count("=")


def _is_told(structured: Any, parts: Sequence[str]) -> bool:
    """Whether the text parts say already what the structured content says. The protocol asks servers to repeat it as
    JSON, and SDKs wrap what is no object as {"result": ...}, whose value they print as they like."""
    if any(_says(part, structured) for part in parts):
        return True
    if not isinstance(structured, dict) or set(structured) != {"result"}:
        return False
    value = structured["result"]
    if isinstance(value, list) and len(value) == len(parts):
        return all(_says(part, item) for part, item in zip(parts, value, strict=True))
    return any(_says(part, value) or (isinstance(value, str) and value in part) for part in parts)


def _says(part: str, value: Any) -> bool:
    """Whether `part` is `value`, printed or as JSON."""
    if part.strip() == str(value).strip():
        return True
    try:
        return bool(json.loads(part) == value)
    except (ValueError, RecursionError):
        return False


def _compact(schema: Any, *, names: bool = False) -> Any:
    """The schema without titles and dialect. `names`: the keys at this level are names, where `title` is one too."""
    if isinstance(schema, list):
        return [_compact(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if not names and (key in ("title", "$schema", "$comment") or (key == "description" and not value)):
            continue
        verbatim = not names and key in ("default", "const", "enum", "examples")
        kept[key] = value if verbatim else _compact(value, names=not names and key in ("properties", "$defs"))
    return kept
