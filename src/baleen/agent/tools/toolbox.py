"""Plain functions as tools: type hints become the JSON Schema, a docstring's first line the description.

The schemas are compact, because a small model reads every character of them: no titles, no descriptions that nobody
wrote. What the model does wrong comes back as one short readable line; it is never an exception.

    async def add(a: int, b: Annotated[int, "the second term"] = 0) -> int: ...
    toolbox = Toolbox([add]);  toolbox.specs;  await toolbox.call(call)
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from baleen.chat.messages import Message, ToolCall, ToolSpec

Tool = Callable[..., Any]


def tool_spec(function: Tool, name: str | None = None, description: str | None = None) -> ToolSpec:
    """`function` as it is offered to a model. Raises `TypeError` for parameters that have no type or no name."""
    name = name or function.__name__
    if description is None:
        description = next(iter((inspect.getdoc(function) or "").splitlines()), "")
    return _spec(name, description, _parameters(function, name))


class Toolbox:
    """Some functions, sync or async, under their names. Calls are validated, run, and answered as tool messages."""

    def __init__(self, functions: Mapping[str, Tool] | Iterable[Tool]) -> None:
        named = functions.items() if isinstance(functions, Mapping) else ((f.__name__, f) for f in functions)
        self._tools = {name: (function, _parameters(function, name)) for name, function in named}
        self.specs: list[ToolSpec] = [tool_spec(function, name) for name, (function, _) in self._tools.items()]

    async def call(self, call: ToolCall) -> Message:
        """Runs one call. A mistake in it, or a `ValueError` of the tool, is answered `error: ...`; every other
        exception is a fault of the tool itself and is raised."""
        return Message(role="tool", tool_call_id=call.id, content=await self._answer(call))

    async def _answer(self, call: ToolCall) -> str:
        name = call.function.name
        if name not in self._tools:
            return f"error: unknown tool {name!r}; tools: {', '.join(self._tools)}"
        function, parameters = self._tools[name]
        try:
            given = parameters.model_validate(call.function.parsed())
        except ValidationError as error:
            return f"error: {name}: {_first_mistakes(error)}"
        except ValueError as error:
            return f"error: {name}: arguments are not a JSON object: {error}"
        try:
            value = function(**{field: getattr(given, field) for field in given.model_fields_set})
            if inspect.isawaitable(value):
                value = await value
        except ValueError as error:
            return f"error: {error}"
        return value if isinstance(value, str) else _compact_json(value)


def _parameters(function: Tool, name: str) -> type[BaseModel]:
    """A closed pydantic model of the function's parameters."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"tool {name!r}: parameter {parameter.name!r} cannot be given by name")
        if parameter.name not in hints:
            raise TypeError(f"tool {name!r}: parameter {parameter.name!r} needs a type hint")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (_described(hints[parameter.name]), default)
    return create_model(name, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)


def _described(hint: Any) -> Any:
    """`Annotated[T, "text"]` with its text as pydantic's description."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, *extras = get_args(hint)
    mended: list[FieldInfo | Any] = [Field(description=e) if isinstance(e, str) else e for e in extras]
    return Annotated[(kind, *mended)]


def _spec(name: str, description: str, parameters: type[BaseModel]) -> ToolSpec:
    schema = _without_titles(parameters.model_json_schema())
    # That unknown arguments are refused is for the validator; the model needs only the names that exist.
    schema = {key: schema[key] for key in ("type", "properties", "required", "$defs") if key in schema}
    function = {"name": name, "description": description, "parameters": schema}
    return ToolSpec(function={key: value for key, value in function.items() if value != ""})


def _without_titles(schema: Any, *, names: bool = False) -> Any:
    """The schema without its `title` keywords. `names`: the keys at this level are names, where `title` is one too."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key == "title" and not names:
            continue
        verbatim = not names and key in ("default", "const", "enum", "examples")
        holds_names = not names and key in ("properties", "$defs")
        kept[key] = value if verbatim else _without_titles(value, names=holds_names)
    return kept


def _first_mistakes(error: ValidationError) -> str:
    mistakes = []
    for mistake in error.errors(include_url=False, include_context=False)[:3]:
        place = ".".join(map(str, mistake["loc"]))
        text = "unknown argument" if mistake["type"] == "extra_forbidden" else mistake["msg"]
        mistakes.append(f"{place}: {text}" if place else text)
    return "; ".join(mistakes)


def _compact_json(value: Any) -> str:
    return json.dumps(to_jsonable_python(value), ensure_ascii=False, separators=(",", ":"))
