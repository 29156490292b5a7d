"""A real Jupyter kernel in a real sandbox: state, errors, pictures, and every way to lose it."""

import asyncio
import json
import re
import time
import warnings

import pytest

from baleen.agent.environment import InfrastructureError
from baleen.agent.sandbox import Sandbox, SandboxUnavailable, WeakSandboxWarning
from baleen.agent.tools import Toolbox
from baleen.agent.tools.kernel import Kernel, _KernelLost, kernel_folders, kernel_sandbox
from baleen.chat.messages import FunctionCall, ToolCall

pytestmark = pytest.mark.usefixtures("isolation")

DRAW = """
import base64, struct, zlib
from IPython.display import Image, display
def part(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
header = part(b"IHDR", struct.pack(">IIBBBBB", 2, 3, 8, 0, 0, 0, 0))
png = b"\\x89PNG\\r\\n\\x1a\\n" + header + part(b"IDAT", zlib.compress(b"\\0ab" * 3)) + part(b"IEND", b"")
"""


class Session:
    """One event loop, one sandbox and one kernel for several tests."""

    def __init__(self):
        self.runner = asyncio.Runner()
        self.sandbox = kernel_sandbox()
        self.runner.run(self.sandbox.__aenter__())
        self.kernel = Kernel(self.sandbox, output_characters=2000)

    def __call__(self, code, timeout=60.0):
        return self.runner.run(self.kernel.python(code, timeout)).text

    def close(self):
        self.runner.run(self.sandbox.close())
        self.runner.close()


@pytest.fixture(scope="module")
def python():
    session = Session()
    yield session
    session.close()


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("6 * 7", "42"),
        ("print('a'); 3", "a\n3"),
        ("y = 1", "(no output)"),
        ("", "(no output)"),
        ("'\\x1b[31mred'", "'\\x1b[31mred'"),
        ("print('\\x1b[31mred\\x1b[0m 鯨')", "red 鯨"),
        ("import sys; print('out'); print('err', file=sys.stderr)", "out\nerr"),
        ("import os; os.system('echo child'); None", "child"),
        ("!echo shell", "shell"),
        ("%%bash\necho cell", "cell"),
        ("for i in range(3): print(i, end='\\r')", "2"),
        ("import asyncio\nawait asyncio.sleep(0)\n'awaited'", "'awaited'"),
        (
            "1 / 0",
            "Traceback (most recent call last):\n  Cell In[*], line 1\n    1 / 0\nZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_cell_is_answered_as_a_reader_expects(python, code, answer):
    assert re.sub(r"In\[\d+\]", "In[*]", python(code)) == answer


def test_variables_and_imports_stay_and_files_of_the_workspace_can_be_imported(python):
    python("import math\nx = math.factorial(5)\nopen('mine.py', 'w').write('value = 7')")
    assert python("import mine\n(x, mine.value)") == "(120, 7)"


def test_errors_are_short_whatever_their_depth(python):
    answer = python("def f(n): return f(n + 1)\nf(0)")
    assert answer.startswith("Traceback")
    assert answer.endswith("RecursionError: maximum recursion depth exceeded")
    assert len(answer) < 3100
    assert "\x1b" not in answer


def test_input_is_refused_readably(python):
    assert "does not support input" in python("input()")


def test_exit_does_not_end_the_kernel(python):
    python("kept = 1\nimport sys")
    assert python("sys.exit(3)").endswith("SystemExit: 3")
    assert python("kept") == "1"


def test_long_output_shows_its_beginning_and_its_end(python):
    answer = python("for i in range(100_000): print(i)\n'the end'")
    assert answer.startswith("0\n1\n2\n")
    assert answer.endswith("99999\n'the end'")
    assert "characters left out" in answer
    assert len(answer) < 2100


def test_pictures_come_back_beside_the_text(python):
    result = python.runner.run(python.kernel.python(DRAW + "print('before'); display(Image(png)); len(png)"))
    assert result.text == f"before\n{len(result.images[0].data)}"
    assert (
        result.images[0].described("p")
        == f"[p: image/png, 2 x 3 pixels, {len(result.images[0].data)} bytes; kept, but not shown here]"
    )
    assert result.images[0].data.startswith(b"\x89PNG")


@pytest.mark.parametrize("picture", ["not base64!!", "abc", "\u9be8", 7, ["iVBO"], None])
def test_a_badly_formed_picture_is_told_and_variables_are_kept(python, picture):
    python("from IPython.display import publish_display_data\nkept = 'here'")
    result = python.runner.run(python.kernel.python(f"publish_display_data({{'image/png': {picture!r}}}); kept"))
    assert result.images == ()
    assert result.text == "[an image was left out: its image/png data is not base64]\n'here'"


def test_the_tool_in_a_toolbox_keeps_pictures_and_validates_arguments(python):
    toolbox = Toolbox([python.kernel.python])

    def answer(arguments):
        call = ToolCall(id="c", function=FunctionCall(name="python", arguments=arguments))
        return python.runner.run(toolbox.call(call)).content

    assert answer('{"code": "display(Image(png))"}').startswith("[image-1: image/png, 2 x 3 pixels")
    assert toolbox.images["image-1"].data.startswith(b"\x89PNG")
    assert answer('{"code": "1", "timeout": -1}') == "error: timeout must be more than 0 seconds, got -1"
    assert answer('{"code": "1", "timeout": NaN}').startswith("error: timeout must be more than 0")
    assert answer('{"code": "print(\'a\\ud800b\')"}') == "a?b"


def test_text_that_cannot_be_sent_does_not_stop_the_kernel(python):
    assert "surrogates not allowed" in python("print('\\ud800')")
    assert python("1 + 1") == "2"


def test_neither_network_nor_the_hosts_files_are_in_reach(python):
    assert python("import os; sorted(os.listdir('/root')) if os.path.exists('/root') else 'nothing'") == "'nothing'"
    assert "Network is unreachable" in python("import socket; socket.create_connection(('1.1.1.1', 53), 2)")
    assert python("import os; [f for f in ('src', 'tests', '.git') if os.path.exists('/work/main/' + f)]") == "[]"


def test_what_runs_over_is_interrupted_and_variables_are_kept(python):
    python("import time\nkept = 'here'")
    began = time.monotonic()
    answer = python("print('began')\ntime.sleep(60)", 0.5)
    assert answer.startswith("began\nTraceback")
    assert answer.endswith("error: timed out after 0.5 s; the code was interrupted, variables are kept")
    assert "interrupted" in python("while True: pass", 0.5)
    assert python("kept") == "'here'"
    assert time.monotonic() - began < 15


def test_endless_printing_is_interrupted_and_cut(python):
    answer = python("while True: print('y' * 100)", 0.5)
    assert answer.startswith("yyy")
    assert answer.endswith("variables are kept")
    assert len(answer) < 2000 + 3000 + 300
    assert python("'after'") == "'after'"


def test_calls_of_one_turn_run_one_after_the_other_in_order(python):
    async def turn():
        python_tool = python.kernel.python
        return await asyncio.gather(*(python_tool(f"n = {i}\nimport time; time.sleep(0.05)\nn") for i in range(3)))

    assert [result.text for result in python.runner.run(turn())] == ["0", "1", "2"]


LOST = "all variables are lost, and the next call gets a new kernel"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; print('last words', flush=True); os._exit(7)", "error: the kernel died with exit code 7; "),
        ("import os; os.kill(os.getppid(), 9)", "error: the kernel died; "),
        (
            "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, [2]); time.sleep(60)",
            "error: timed out after 1 s and could not be interrupted; ",
        ),
    ],
)
def test_a_kernel_that_is_lost_is_replaced_and_the_model_is_told(python, code, reason):
    python("lost = 1")
    assert python(code, 1.0).endswith(reason + LOST)
    assert python("'lost' in globals()") == "False"
    count = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c '^ipykernel_launcher$'"
    assert python.runner.run(python.sandbox.run(["sh", "-c", count])).stdout == "1\n"  # the lost one has ended


def test_reset_and_cancellation_forget_variables_and_keep_files(python):
    async def cancelled():
        await asyncio.wait_for(python.kernel.python("import time; print('late'); time.sleep(60)"), 0.5)

    python("x = 1; open('stays', 'w').close()")
    python.runner.run(python.kernel.reset())
    assert python("import os; ('x' in globals(), os.path.exists('stays'))") == "(False, True)"
    with pytest.raises(TimeoutError):
        python.runner.run(cancelled())
    assert python("'next'") == "'next'"


@pytest.mark.parametrize("line", ["nonsense", '{"code": "9", "timeout": 1, "token": "x"}', "[" * 50_000])
def test_what_code_writes_to_the_drivers_pipes_is_never_taken_for_an_answer(python, line):
    forge = """
import os, stat
folder = f"/proc/{os.getppid()}/fd"
pipes = [f"{folder}/{n}" for n in os.listdir(folder) if stat.S_ISFIFO(os.stat(f"{folder}/{n}").st_mode)]
for path in pipes:
    with open(path, "w") as pipe: print(%r, file=pipe, flush=True)
len(pipes)
"""
    answers = [python(forge % line, 20.0), python("1 + 1"), python("1 + 1")]
    assert all(answer.endswith(LOST) for answer in answers[:-1] if answer not in ("2", "(no output)"))
    assert any(answer.endswith(LOST) for answer in answers)  # the attack reached a pipe
    assert answers[-1] == "2"


@pytest.mark.parametrize("left_out", ["Infinity", "1e999", '"many"', "null"])
def test_a_forged_number_is_a_disturbed_channel(python, left_out):
    reply = json.loads(f'{{"text": "", "error": "", "images": [], "end": "done", "left_out": {left_out}}}')
    with pytest.raises(_KernelLost, match="disturbed"):
        python.kernel._result(reply, 1.0)


def test_without_its_packages_in_the_sandbox_it_is_an_infrastructure_error():
    async def main():
        async with Sandbox() as sandbox:
            await Kernel(sandbox).python("1")

    with pytest.raises(InfrastructureError, match=r"kernel does not start: .*jupyter_client"):
        asyncio.run(main())


def test_a_dead_sandbox_is_an_infrastructure_error():
    async def main():
        async with kernel_sandbox() as sandbox:
            await sandbox.close()
            await Kernel(sandbox).python("1")

    with pytest.raises(InfrastructureError, match="sandbox"):
        asyncio.run(main())


def test_the_tier_that_denies_sockets_is_named():
    async def main():
        async with Sandbox(tier="landlock", readable=kernel_folders()) as sandbox:
            await Kernel(sandbox).python("1")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakSandboxWarning)
        try:
            with pytest.raises(InfrastructureError, match="use bubblewrap"):
                asyncio.run(main())
        except SandboxUnavailable as reason:
            pytest.skip(str(reason))


def test_it_runs_in_the_weakest_tier_too():
    async def main():
        async with Sandbox(allow_weak=True, tier="none", readable=kernel_folders()) as sandbox:
            kernel = Kernel(sandbox)
            return [(await kernel.python(code)).text for code in ("x = 2", "x + 1")]

    with pytest.warns(WeakSandboxWarning, match="NO ISOLATION"):
        assert asyncio.run(main()) == ["(no output)", "3"]
