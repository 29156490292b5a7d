"""View, create, edit in a real workspace: what the model reads, and that the host stays out of reach."""

import asyncio
import json

import pytest

from baleen.agent.environment import InfrastructureError
from baleen.agent.sandbox import Limits, Sandbox
from baleen.agent.tools import Toolbox
from baleen.agent.tools.files import FileTools
from baleen.chat.messages import FunctionCall, ToolCall

pytestmark = pytest.mark.usefixtures("isolation")


def answers(*calls, before=None, limits=None):
    """What a model reads for each (tool, arguments), in a fresh workspace."""

    async def main():
        async with Sandbox(limits) as sandbox:
            for path, content in (before or {}).items():
                await sandbox.write(path, content)
            toolbox = Toolbox(FileTools(sandbox).tools)
            texts = []
            for name, arguments in calls:
                call = ToolCall(id="c", function=FunctionCall(name=name, arguments=json.dumps(arguments)))
                texts.append((await toolbox.call(call)).content)
            return texts

    return asyncio.run(main())


def test_a_file_is_written_seen_and_edited():
    path = "src/a.py"
    assert answers(
        ("create", {"path": path, "text": "a\nb\nc\n"}),
        ("view", {"path": path}),
        ("edit", {"path": path, "line": 2, "old": "b", "new": "B1\nB2"}),
        ("edit", {"path": path, "line": 1, "old": "a\n", "new": ""}),
        ("edit", {"path": path, "line": 4, "old": "", "new": "end"}),
        ("view", {"path": path, "start": 2, "end": 3}),
        ("view", {"path": "src"}),
        ("view", {"path": "."}),
    ) == [
        "Wrote src/a.py: 3 lines.",
        "1| a\n2| b\n3| c",
        "Edited src/a.py:\n1| a\n2| B1\n3| B2\n4| c",
        "Edited src/a.py:\n1| B1\n2| B2\n3| c",
        "Edited src/a.py:\n1| B1\n2| B2\n3| c\n4| end",
        "2| B2\n3| c\n[lines 2 to 3 of 4]",
        "a.py",
        "src/",
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "mistake"),
    [
        ("view", {"path": "none"}, "error: none: no such file or directory"),
        ("view", {"path": "a.txt", "start": 9}, "error: a.txt has lines 1 to 2, not 9"),
        ("view", {"path": "a.txt", "start": 2, "end": 1}, "error: end 1 comes before start 2"),
        ("view", {"path": "../../etc/passwd"}, "error: ../../etc/passwd: "),
        ("view", {"path": "/etc/passwd"}, "error: /etc/passwd: "),
        ("view", {"path": "x\0y"}, "error: path holds a zero byte"),
        ("view", {"path": "binary"}, "error: binary is not UTF-8 text"),
        ("create", {"path": "a.txt", "text": "x"}, "error: a.txt exists; edit it, or pass overwrite=true"),
        ("create", {"path": "folder", "text": "x"}, "error: folder: is a "),
        ("create", {"path": "/etc/x", "text": "x"}, "error: /etc/x: "),
        (
            "edit",
            {"path": "a.txt", "line": 1, "old": "two", "new": "x"},
            "error: old does not stand at line 1 of a.txt",
        ),
        ("edit", {"path": "a.txt", "line": 9, "old": "two", "new": "x"}, "error: a.txt has lines 1 to 2, not 9"),
        (
            "edit",
            {"path": "a.txt", "line": 4, "old": "", "new": "x"},
            "error: a.txt has lines 1 to 2, not 4; insert at 3",
        ),
        ("edit", {"path": "none", "line": 1, "old": "two", "new": "x"}, "error: none: no such file"),
        ("edit", {"path": "folder", "line": 1, "old": "two", "new": "x"}, "error: folder: is a "),
    ],
)
def test_a_mistake_is_readable_and_changes_nothing(name, arguments, mistake):
    before = {"a.txt": b"one\ntwo\n", "binary": b"\xff\xfe\0", "folder/file": b""}
    answer, after = answers((name, arguments), ("view", {"path": "a.txt"}), before=before)
    assert answer.startswith(mistake)
    assert after == "1| one\n2| two"


def test_create_replaces_a_file_when_told_so():
    calls = ("create", {"path": "a", "text": "new", "overwrite": True}), ("view", {"path": "a"})
    assert answers(*calls, before={"a": b"old\n"}) == ["Wrote a: 1 lines.", "1| new"]


def test_a_long_file_is_shown_in_parts_and_long_lines_are_cut():
    text = "".join(f"{i}\n" for i in range(1, 1001))
    first, rest = answers(("view", {"path": "a"}), ("view", {"path": "a", "start": 401}), before={"a": text.encode()})
    assert first.endswith("400| 400\n[lines 1 to 400 of 1000]")
    assert rest.startswith("401| 401\n")
    assert answers(("view", {"path": "a"}), before={"a": b"x" * 5000}) == [
        "1| " + "x" * 1000 + " [4000 more characters]"
    ]


def test_an_empty_file_says_so_and_takes_lines():
    assert answers(
        ("view", {"path": "a"}), ("edit", {"path": "a", "line": 1, "old": "", "new": "x"}), before={"a": b""}
    ) == ["(a is empty)", "Edited a:\n1| x"]


def test_a_full_disk_is_the_models_to_read():
    big = {"path": "a", "text": "x" * (3 << 20)}
    assert "no space left" in answers(("create", big), limits=Limits(disk_bytes=1 << 20))[0]


def test_a_dead_sandbox_is_an_infrastructure_error():
    async def main():
        async with Sandbox() as sandbox:
            tools = FileTools(sandbox)
            await sandbox.close()
            await tools.view("a")

    with pytest.raises(InfrastructureError, match="sandbox"):
        asyncio.run(main())


def test_edits_of_one_turn_are_all_made():
    async def main():
        async with Sandbox() as sandbox:
            await sandbox.write("a", "".join(f"{i}\n" for i in range(1, 9)).encode())
            tools = FileTools(sandbox)
            await asyncio.gather(*(tools.edit("a", i, str(i), f"new {i}") for i in range(1, 9)))
            return (await sandbox.read("a")).decode()

    assert asyncio.run(main()) == "".join(f"new {i}\n" for i in range(1, 9))


def test_of_files_created_under_one_name_in_one_turn_the_first_stays():
    async def main():
        async with Sandbox() as sandbox:
            tools = FileTools(sandbox)
            made = await asyncio.gather(*(tools.create("a", text) for text in "xyz"), return_exceptions=True)
            return [isinstance(answer, ValueError) for answer in made], await sandbox.read("a")

    assert asyncio.run(main()) == ([False, True, True], b"x")


def test_a_line_can_be_edited_as_it_is_seen_with_the_spaces_at_its_end():
    shown, edited = answers(
        ("view", {"path": "a"}),
        ("edit", {"path": "a", "line": 1, "old": "a  ", "new": "b"}),
        before={"a": b"a  \n\n \t\n"},
    )
    assert shown == "1| a  \n2|\n3|  \t"
    assert edited == "Edited a:\n1| b\n2|\n3|  \t"


def test_a_large_folder_shows_its_first_names_and_counts_the_rest():
    shown = answers(("view", {"path": "d"}), before={f"d/{i:03}": b"" for i in range(403)})[0].split("\n")
    assert shown == [*(f"{i:03}" for i in range(400)), "[3 more]"]
