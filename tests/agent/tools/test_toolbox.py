"""Functions as tools: compact schemas, validated calls, mistakes as one readable line."""

import asyncio
import contextvars
import enum
import json
import time
from dataclasses import dataclass
from typing import Annotated, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from baleen.agent.tools import Finished, Image, Toolbox, ToolResult, submit_tool, tool_spec
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


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


def plan(
    rooms: list[Room],
    level: Level = Level.LOW,
    note: Optional[str] = None,  # noqa: UP045 - tools are written in both spellings
    schema: dict[str, int] | None = None,
    _private: int = 0,
) -> str:
    assert all(isinstance(room, Room) for room in rooms)
    return f"{[room.name for room in rooms]} {level} {note} {schema} {_private}"


def test_dataclasses_enums_lists_and_optional_values_arrive_as_their_own_types():
    toolbox = Toolbox([plan])
    given = {"rooms": [{"name": "a", "seats": [1]}], "level": "high", "note": None, "schema": {"x": 1}, "_private": 2}
    assert answer("plan", given, toolbox) == "['a'] Level.HIGH None {'x': 1} 2"
    parameters = toolbox.specs[0].function["parameters"]
    assert list(parameters["properties"]) == ["rooms", "level", "note", "schema", "_private"]
    assert parameters["$defs"]["Level"] == {"enum": ["low", "high"], "type": "string"}
    assert parameters["properties"]["level"]["default"] == "low"
    assert parameters["required"] == ["rooms"]


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ({"rooms": [{"name": "a"}]}, "error: plan: rooms.0.seats: Field required"),
        ({"rooms": [], "level": "middle"}, "error: plan: level: Input should be 'low' or 'high'"),
        ({"rooms": {}}, "error: plan: rooms: Input should be a valid list"),
        ({"rooms": [], "argument_1": "low"}, "error: plan: argument_1: unknown argument"),
    ],
)
def test_a_mistake_inside_a_structure_names_its_place(arguments, mistake):
    assert answer("plan", arguments, Toolbox([plan])) == mistake


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two tools have the name 'book'"):
        Toolbox([book, book])


def test_half_a_surrogate_pair_is_answered_as_text():
    async def odd() -> str:
        return "a\ud800b"

    assert answer("odd", {}, Toolbox([odd])) == "a?b"


def calls_of(*named):
    return [
        ToolCall(id=f"c{i}", function=FunctionCall(name=name, arguments=json.dumps(arguments)))
        for i, (name, arguments) in enumerate(named)
    ]


async def sleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return f"slept {seconds}"


def doze(seconds: float) -> str:
    time.sleep(seconds)
    return f"dozed {seconds}"


def test_calls_of_one_turn_run_side_by_side_and_answer_in_order():
    toolbox = Toolbox([sleep])
    began = time.monotonic()
    answers = asyncio.run(toolbox.call_all(calls_of(*[("sleep", {"seconds": s}) for s in (0.3, 0.1, 0.2)])))
    assert [(m.tool_call_id, m.content) for m in answers] == [
        ("c0", "slept 0.3"),
        ("c1", "slept 0.1"),
        ("c2", "slept 0.2"),
    ]
    assert time.monotonic() - began < 0.55


@pytest.mark.parametrize("tool", ["sleep", "doze"])
def test_a_call_that_runs_over_is_answered_so_and_the_others_are_not_disturbed(tool):
    toolbox = Toolbox([sleep, doze], seconds=0.3)
    answers = asyncio.run(toolbox.call_all(calls_of((tool, {"seconds": 3}), (tool, {"seconds": 0.01}))))
    assert answers[0].content == f"error: {tool}: timed out after 0.3 s"
    assert answers[1].content.endswith(" 0.01")


def test_sync_tools_in_threads_run_one_at_a_time_in_order_and_each_has_its_whole_time():
    events = []

    def note(n: int) -> str:
        events.append(("begin", n))
        time.sleep(0.2)
        events.append(("end", n))
        return str(n)

    toolbox = Toolbox([note], seconds=0.5)
    for _ in range(2):  # a toolbox serves one event loop after another
        answers = asyncio.run(toolbox.call_all(calls_of(*[("note", {"n": n}) for n in range(4)])))
        assert [m.content for m in answers] == ["0", "1", "2", "3"]
    assert events == [(kind, n) for n in range(4) for kind in ("begin", "end")] * 2


def test_a_sync_tool_in_a_thread_sees_the_callers_context():
    variable = contextvars.ContextVar("variable", default="outside")

    def look() -> str:
        return variable.get()

    async def main():
        variable.set("inside")
        return await Toolbox([look], seconds=5).call_all(calls_of(("look", {})))

    assert asyncio.run(main())[0].content == "inside"


@pytest.mark.parametrize("seconds", [None, 5.0])
def test_a_fault_in_one_call_of_a_turn_is_raised_and_the_others_are_cancelled(seconds):
    ended = []

    async def slow() -> str:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("slow")
        return ""

    async def main():
        await Toolbox([slow, broken], seconds=seconds).call_all(calls_of(("slow", {}), ("broken", {})))

    with pytest.raises(KeyError, match="inside"):
        asyncio.run(main())
    assert ended == ["slow"]


def test_a_timeout_of_the_tools_own_is_its_fault():
    async def impatient() -> str:
        raise TimeoutError("the server did not answer")

    with pytest.raises(TimeoutError, match="the server did not answer"):
        answer("impatient", {}, Toolbox([impatient], seconds=5))


PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big") + b"rest"


def test_an_image_becomes_a_line_in_the_message_and_its_bytes_are_kept():
    async def draw() -> ToolResult:
        return ToolResult("a plot", (Image(PNG), Image(b"GIF89a", "image/gif")))

    async def show() -> Image:
        return Image(PNG)

    toolbox = Toolbox([draw, show])
    assert answer("draw", {}, toolbox) == (
        "a plot\n[image-1: image/png, 640 x 480 pixels, 28 bytes; kept, but not shown here]\n"
        "[image-2: image/gif, 6 bytes; kept, but not shown here]"
    )
    assert answer("show", {}, toolbox).startswith("[image-3: image/png")
    assert toolbox.images["image-3"].data == PNG


def test_submit_ends_the_episode_once():
    toolbox = Toolbox([submit_tool(int)])
    assert toolbox.finished is None
    assert answer("submit", {"answer": "many"}, toolbox).startswith(
        "error: submit: answer: Input should be a valid int"
    )
    assert toolbox.finished is None
    assert answer("submit", {"answer": 42}, toolbox) == "The answer was recorded."
    assert toolbox.finished == Finished(42)
    assert answer("submit", {"answer": 43}, toolbox) == "error: submit: the episode has ended already"
    assert toolbox.finished.answer == 42


def test_an_answer_that_the_check_refuses_can_be_mended():
    def three_words(answer):
        if len(answer.split()) != 3:
            raise ValueError("answer with three words")

    toolbox = Toolbox([submit_tool(check=three_words)])
    assert answer("submit", {"answer": "one"}, toolbox) == "error: answer with three words"
    assert answer("submit", {"answer": "one two three"}, toolbox) == "The answer was recorded."
    assert toolbox.specs[0].function["parameters"]["properties"] == {"answer": {"type": "string"}}


def test_a_sync_tool_without_a_time_limit_needs_no_event_loop():
    steps = TOOLBOX.call(calls_of(("find", {"place": {"title": "a"}}))[0])
    with pytest.raises(StopIteration) as ended:
        steps.send(None)
    assert ended.value.value.content == '[{"name":"a","seats":[1,2]}]'
