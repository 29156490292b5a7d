"""Functions as tools: compact schemas, validated calls, mistakes as one readable line."""

import asyncio
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from baleen.agent.tools import Toolbox, tool_spec
from baleen.chat.messages import FunctionCall, ToolCall


class Place(BaseModel):
    title: str
    floor: int = 0


@dataclass
class Room:
    name: str
    seats: list[int]


async def book(
    room: str, hours: Annotated[int, "whole hours"] = 1, kind: Literal["quiet", "loud"] = "quiet", title: str = ""
) -> str:
    """Books a room.

    Nobody outside needs this line.
    """
    if hours > 8:
        raise ValueError("a room can be had for 8 hours at most")
    return f"{room} {hours} {kind} {title}"


def find(place: Place, limit: int | None = None) -> list[Room]:
    return [Room(place.title, [1, 2])][:limit]


def broken() -> str:
    """Fails by its own fault."""
    raise KeyError("inside")


TOOLBOX = Toolbox([book, find, broken])


def answer(name, arguments, toolbox=TOOLBOX):
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = ToolCall(id="call-7", function=FunctionCall(name=name, arguments=text))
    message = asyncio.run(toolbox.call(call))
    assert (message.role, message.tool_call_id) == ("tool", "call-7")
    return message.content


def test_a_spec_says_what_the_signature_says_and_no_more():
    assert tool_spec(book).function == {
        "name": "book",
        "description": "Books a room.",
        "parameters": {
            "type": "object",
            "properties": {
                "room": {"type": "string"},
                "hours": {"type": "integer", "description": "whole hours", "default": 1},
                "kind": {"type": "string", "enum": ["quiet", "loud"], "default": "quiet"},
                "title": {"type": "string", "default": ""},
            },
            "required": ["room"],
        },
    }


def test_titles_go_and_parameters_named_title_stay():
    parameters = tool_spec(find).function["parameters"]
    assert parameters["$defs"]["Place"]["properties"]["title"] == {"type": "string"}
    assert "title" not in parameters["$defs"]["Place"]


def test_name_and_description_can_be_given():
    spec = tool_spec(book, name="reserve", description="Takes a room.")
    assert (spec.name, spec.function["description"]) == ("reserve", "Takes a room.")


def test_a_parameter_without_a_type_is_refused_when_the_tool_is_made():
    def vague(x):
        return x

    with pytest.raises(TypeError, match="type hint"):
        tool_spec(vague)


def test_strings_come_back_as_they_are_and_values_as_compact_json():
    assert answer("book", {"room": "Grün", "kind": "loud"}) == "Grün 1 loud "
    assert answer("find", {"place": {"title": "鯨"}}) == '[{"name":"鯨","seats":[1,2]}]'


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("x", {}, "error: unknown tool 'x'; tools: book, find, broken"),
        ("book", {}, "error: book: room: Field required"),
        ("book", {"room": "a", "hour": 2}, "error: book: hour: unknown argument"),
        ("book", {"room": "a", "hours": "many"}, "error: book: hours: Input should be a valid integer"),
        ("book", {"room": "a", "hours": 9}, "error: a room can be had for 8 hours at most"),
        ("book", "[1]", "error: book: arguments are not a JSON object"),
        ("book", "{", "error: book: arguments are not a JSON object"),
    ],
)
def test_mistakes_of_the_model_are_one_readable_line(name, arguments, expected):
    content = answer(name, arguments)
    assert content.startswith(expected)
    assert "\n" not in content


def test_a_fault_of_the_tool_is_raised():
    with pytest.raises(KeyError):
        answer("broken", {})


def test_tools_may_be_renamed():
    toolbox = Toolbox({"reserve": book})
    assert [spec.name for spec in toolbox.specs] == ["reserve"]
    assert answer("reserve", {"room": "a"}, toolbox) == "a 1 quiet "


@given(st.text(max_size=40))
def test_no_text_of_arguments_breaks_a_toolbox(text):
    assert isinstance(answer("book", text), str)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_values_survive_the_way_back(value):
    def echo(data: dict[str, int | str]) -> dict[str, int | str]:
        return data

    assert json.loads(answer("echo", {"data": value}, Toolbox([echo]))) == value
