"""The code interpreter: warm, fresh on every call, and readable when something goes wrong."""

import asyncio
import shutil
import time

import pytest

from baleen.agent.environment import InfrastructureError
from baleen.agent.python_tool import PythonTool, describe
from baleen.agent.sandbox import Limits, RunResult
from baleen.agent.tools import tool_spec

pytestmark = pytest.mark.usefixtures("isolation")


def answers(*programs, **options):
    async def main():
        async with PythonTool(**options) as tool:
            return [await tool.python(program) for program in programs]

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("print(6 * 7)", "42"),
        ("x = 6\nx * 7", "42"),
        ("'a' * 3", "'aaa'"),
        ("print('a')\n3", "a"),
        ("x = 1", "(no output)"),
        ("None", "(no output)"),
        ("", "(no output)"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print('before')\nnope", "before\nNameError: name 'nope' is not defined"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(0)", "(no output)"),
        ("exit(3)", "error: exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "error: exit code -9"),
        ("import sys; print('line', file=sys.stderr); exit(3)", "line\nerror: exit code 3"),
        ("import os, sys; print('line', file=sys.stderr, flush=True); os.abort()", "line\nerror: exit code -6"),
        ("input()", "EOFError: EOF when reading a line"),
        ("print('Grüße 鯨')", "Grüße 鯨"),
        ("x = bytearray(1 << 40)", "MemoryError"),
        ("def f(n): return n if n < 2 else f(n-1) + f(n-2)\nf(15)", "610"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nA(1)", "A(x=1)"),
    ],
)
def test_a_program_is_answered_as_a_reader_expects(program, answer):
    assert answers(program)[0].startswith(answer)


def test_nothing_passes_from_one_call_to_the_next():
    leave = "import math, builtins\nmath.pi = 3\nbuiltins.leak = 1\nfor f in ('f', '/tmp/g'): open(f, 'w').write('x')"
    look = "import math, os\nprint(math.pi, 'leak' in dir(__builtins__), os.listdir('.'), os.listdir('/tmp'))"
    assert answers(leave, look)[1] == "3.141592653589793 False [] []"


def test_the_same_program_gives_the_same_text_in_any_sandbox():
    program = "import random\nprint({'a', 'b', 'c', 'd'}, random.random(), hash('x'))"
    assert len(set(answers(program, program) + answers(program))) == 1


def test_an_endless_program_is_stopped_and_the_next_one_runs():
    began = time.monotonic()
    assert answers("while True: pass", "1 + 1", timeout=0.3) == ["error: timed out after 0.3 s", "2"]
    assert time.monotonic() - began < 5


def test_long_output_is_cut():
    answer = answers("print('x' * 10_000)", limits=Limits(output_bytes=100))[0]
    assert answer == "x" * 100 + "\n[output was cut here]"


def test_an_exception_needs_no_exit_code_and_too_many_files_are_named():
    assert answers("1 / 0") == ["ZeroDivisionError: division by zero"]
    assert describe(RunResult("", "line\n", -9, too_many_files=True), 1.0) == "line\nerror: too many files"


def test_closing_waits_for_a_call_and_its_program_runs_once():
    async def main():
        tool = PythonTool()
        await tool.python("")
        call = asyncio.create_task(tool.python("import time\nprint(time.monotonic())\ntime.sleep(0.5)"))
        await asyncio.sleep(0.25)
        closed_at = time.monotonic()
        await tool.close()
        return float(await call) < closed_at, time.monotonic() - closed_at < 3

    assert asyncio.run(main()) == (True, True)


def test_many_callers_share_one_tool_and_each_gets_its_own_answer():
    async def main():
        async with PythonTool(workers=2) as tool:
            return await asyncio.gather(*(tool.python(f"{i} * {i}") for i in range(40)))

    assert asyncio.run(main()) == [str(i * i) for i in range(40)]


def test_one_tool_serves_one_event_loop_after_another():
    tool = PythonTool()

    async def several():
        return await asyncio.gather(tool.python("1"), tool.python("2"))

    assert asyncio.run(several()) == asyncio.run(several()) == ["1", "2"]
    asyncio.run(tool.close())


def test_a_cancelled_call_does_not_disturb_the_next():
    async def main():
        async with PythonTool(timeout=1.0) as tool:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(tool.python("while True: pass"), 0.2)
            return await tool.python("'next'")

    assert asyncio.run(main()) == "'next'"


def test_it_offers_itself_compactly():
    spec = tool_spec(PythonTool().python)
    assert spec.function["name"] == "python"
    assert spec.function["parameters"]["required"] == ["code"]
    assert spec.function["description"].startswith("Runs Python code")


def test_without_isolation_it_is_an_infrastructure_error_unless_weakness_is_allowed(monkeypatch):
    real = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name == "bwrap" else real(name))
    monkeypatch.setattr("baleen.agent.sandbox.weak.landlock_version", lambda: 0)
    with pytest.raises(InfrastructureError, match="bubblewrap"):
        answers("1")
    with pytest.warns(UserWarning, match="NO ISOLATION"):
        assert answers("1", allow_weak=True) == ["1"]
