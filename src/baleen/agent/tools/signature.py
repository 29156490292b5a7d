"""A function's signature as a tool: type hints become the JSON Schema, a docstring's first line the description.

The schemas are compact, because a small model reads every character of them: no titles, no descriptions that nobody
wrote. Any hint that pydantic knows will do: lists, optional values, enums, dataclasses, models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from baleen.chat.messages import ToolSpec

Tool = Callable[..., Any]


def tool_spec(function: Tool, name: str | None = None, description: str | None = None) -> ToolSpec:
    """`function` as it is offered to a model. Raises `TypeError` for parameters that have no type or no name."""
    return Signature(function, name or function.__name__).spec(description)


class Signature:
    """The parameters of one tool: what a model is told of them, and the check of what it gives.

    Raises `TypeError` for parameters that have no type or cannot be given by name.
    """

    def __init__(self, function: Tool, name: str) -> None:
        self.name = name
        self._documentation = inspect.getdoc(function) or ""
        hints = get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise TypeError(f"tool {name!r}: parameter {parameter.name!r} cannot be given by name")
            if parameter.name not in hints:
                raise TypeError(f"tool {name!r}: parameter {parameter.name!r} needs a type hint")
            default = ... if parameter.default is parameter.empty else parameter.default
            # Neutral field names: `copy`, `schema` and `_x` are good parameters, but no fields of a pydantic model.
            field = f"argument_{len(fields)}"
            self._names[field] = parameter.name
            fields[field] = (_described(hints[parameter.name]), Field(default, alias=parameter.name))
        config = ConfigDict(extra="forbid", protected_namespaces=())
        self._model: type[BaseModel] = create_model("arguments", __config__=config, **fields)

    def spec(self, description: str | None = None) -> ToolSpec:
        """The tool as a model sees it; `description` instead of the docstring's first line."""
        if description is None:
            description = next(iter(self._documentation.splitlines()), "")
        schema = _without_titles(self._model.model_json_schema())
        # That unknown arguments are refused is for the validator; the model needs only the names that exist.
        schema = {key: schema[key] for key in ("type", "properties", "required", "$defs") if key in schema}
        function = {"name": self.name, "description": description, "parameters": schema}
        return ToolSpec(function={key: value for key, value in function.items() if value != ""})

    def validated(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The given arguments as the function's own types. Raises `ValueError`, one line that says what is wrong."""
        try:
            given = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            raise ValueError(_first_mistakes(error)) from error
        return {self._names[field]: getattr(given, field) for field in given.model_fields_set}


def _described(hint: Any) -> Any:
    """`Annotated[T, "text"]` with its text as pydantic's description."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, *extras = get_args(hint)
    mended: list[FieldInfo | Any] = [Field(description=e) if isinstance(e, str) else e for e in extras]
    return Annotated[(kind, *mended)]


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
    return "; ".join(" ".join(mistake.split()) for mistake in mistakes)
