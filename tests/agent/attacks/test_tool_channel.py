"""Attacks on the channel through which a program may call the tools that were lent to it, and nothing else."""

import asyncio
import time

import pytest

from baleen.agent.environment import InfrastructureError

RAW = """
import os, struct
def send(data): os.write(3, data)
def message(text): send(struct.pack(">I", len(text)) + text)
def answer():
    length = b""
    while len(length) < 4:
        piece = os.read(3, 4 - len(length))
        if not piece: return None
        length += piece
    data = b""
    while len(data) < struct.unpack(">I", length)[0]: data += os.read(3, 1 << 16)
    return data.decode()
"""


class Lent:
    """A tool that remembers its calls."""

    def __init__(self):
        self.calls = []

    async def double(self, number):
        self.calls.append(number)
        return 2 * number


@pytest.fixture
def call(inside):
    def run(code, tools=None, timeout=10.0):
        lent = Lent()
        tools = {"double": lent.double} if tools is None else tools
        result = inside(lambda sandbox: sandbox.run_python(code, timeout=timeout, tools=tools))
        return result, lent

    return run


def test_tools_that_were_not_lent_cannot_be_called(call):
    code = """
for name in ("open", "run", "eval", "double.__globals__", "__class__", "_tools", ""):
    try: print("BREACH", tools._call(name, {}))
    except ToolError as error: print(error)
print(tools.double(number=21))
"""
    result, lent = call(code)
    assert "BREACH" not in result.stdout
    assert result.stdout.count("there is no tool") == 7
    assert result.stdout.endswith("42\n")
    assert lent.calls == [21]


def test_without_a_loan_there_is_no_channel(attempt):
    attempt("""
        if "tools" in globals(): breach("tools")
        must_fail("channel", os.write, 3, b"x")
    """)


@pytest.mark.parametrize(
    "text",
    [
        "b'garbage'",
        "b'\\xff\\xfe\\x00'",
        "b'[' * 500_000",
        "b'{\"a\":' * 100_000",
        "b'null'",
        "b'[]'",
        "b'{}'",
        'b\'{"name": 1, "arguments": {}}\'',
        'b\'{"name": "double", "arguments": [1]}\'',
        'b\'{"name": "double", "arguments": {}, "more": 1}\'',
        'b\'{"name": "double", "arguments": {"other": 1}}\'',
        'b\'{"name": "double", "arguments": {"self": 1, "number": 2}}\'',
        "b''",
        "b'9' * 1_000_000",
    ],
)
def test_a_message_that_is_no_call_is_answered_with_an_error(text, call):
    result, lent = call(f"{RAW}message({text})\nprint(answer()[:9])\nprint(tools.double(number=1))")
    assert result.stdout == '{"error":\n2\n', result
    assert lent.calls == [1]


def test_a_giant_message_is_refused_and_closes_the_channel(call):
    result, _ = call(f"{RAW}send(struct.pack('>I', 0xFFFFFFFF) + b'x' * 1000)\nprint(answer())\nprint(answer())")
    assert "at most a mebibyte" in result.stdout
    assert result.stdout.endswith("None\n")


def test_giant_arguments_are_refused_where_they_are_made(call):
    result, lent = call("tools.double(number='x' * (2 << 20))")
    assert "ToolError" in result.stderr
    assert lent.calls == []


def test_a_message_that_never_ends_is_ended_by_the_timeout(call):
    result, lent = call(f"{RAW}send(struct.pack('>I', 1000) + b'x')\nprint(answer())", timeout=0.5)
    assert result.timed_out
    assert lent.calls == []


def test_a_flood_of_messages_waits_for_its_answers(call):
    flood = 'b\'{"name": "double", "arguments": {"number": 1}}\''
    began = time.monotonic()
    result, lent = call(f"{RAW}while True: message({flood})", timeout=1)
    assert result.timed_out
    assert time.monotonic() - began < 15
    assert 0 < len(lent.calls) < 20_000  # one at a time, and none after the end


def test_a_tool_that_hangs_ends_with_its_program(call):
    cancelled = []

    async def hang():
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    result, _ = call("tools.hang()", {"hang": hang}, timeout=0.5)
    assert result.timed_out
    assert cancelled == [True]


def test_a_tool_that_fails_is_an_error_inside_and_shows_nothing_else(call):
    async def fails():
        raise ValueError("no such city")

    result, _ = call("try: tools.fails()\nexcept ToolError as error: print(error)\ntools.fails()", {"fails": fails})
    assert result.stdout == "no such city\n"
    assert result.stderr == "ToolError: no such city\n"


def test_a_tool_whose_answer_cannot_be_sent_is_an_error_inside(call):
    async def odd():
        return object()

    async def huge():
        return "x" * (20 << 20)

    result, _ = call("tools.odd()", {"odd": odd})
    assert "not JSON serializable" in result.stderr
    result, _ = call("tools.huge()", {"huge": huge})
    assert "at most" in result.stderr


def test_what_is_not_the_programs_fault_is_raised_at_the_host(inside):
    async def broken():
        raise InfrastructureError("the database is gone")

    async def attack(sandbox):
        with pytest.raises(InfrastructureError, match="database"):
            await sandbox.run_python("try: tools.broken()\nfinally: print('on')", tools={"broken": broken})

    inside(attack)


def test_a_forked_program_shares_the_channel_and_no_executed_one_does(call):
    code = """
import os, subprocess, sys
probe = "import os\\ntry: os.fstat(3); print('BREACH')\\nexcept OSError: print('closed')"
print(subprocess.run([sys.executable, "-S", "-c", probe], capture_output=True, text=True).stdout.strip())
"""
    result, _ = call(code)
    assert result.stdout == "closed\n"
