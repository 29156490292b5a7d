"""Attacks on the server inside: its signals, pipes, memory, imports, and the host that listens to it."""

# ruff: noqa: E501 - a program that attacks is read more easily with one step a line

import pytest


def test_signals_do_not_reach_the_server(attempt):
    attempt("""
        os.kill(1, signal.SIGCHLD)
        for number in [n for n in range(1, 65) if n not in (32, 33)]:
            os.kill(1, number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        must_fail("all", os.kill, -1, signal.SIGTERM)  # nobody is left that could be signalled
    """)


def test_no_pipe_of_the_server_is_open_in_a_program(attempt):
    attempt("""
        for number in range(3, 1024):
            try: os.fstat(number); breach("open", number, os.readlink(f"/proc/self/fd/{number}"))
            except OSError: pass
    """)


def test_forged_frames_are_only_output(inside):
    forged = 'import struct, os\nhead = b\'{"call": 1, "exit_code": 0, "stdout_bytes": 0}\'\n'
    forged += (
        "for fd in range(64):\n  try: os.write(fd, struct.pack('>II', len(head), 0) + head)\n  except OSError: pass\n"
    )
    forged += "import sys; sys.exit(3)"
    result = inside(lambda sandbox: sandbox.run_python(forged))
    assert result.exit_code == 3
    assert '"exit_code": 0' in result.stdout


def test_standard_input_leads_nowhere(attempt):
    attempt("""
        if os.read(0, 1) != b"": breach("input")
        if os.readlink("/proc/self/fd/0") != "/dev/null": breach(os.readlink("/proc/self/fd/0"))
    """)


def test_the_server_imports_nothing_that_a_program_wrote(inside, tmp_path):
    names = [
        "json",
        "_socket",
        "traceback",
        "ctypes",
        "_ctypes",
        "threading",
        "random",
        "ast",
        "re",
        "signal",
        "selectors",
    ]
    plant = f"""
for name in {names!r}:
    open(name + ".py", "w").write("import os\\nopen('/tmp/owned-' + str(os.getpid()), 'w')\\n")
import os
os.makedirs("encodings", exist_ok=True); open("encodings/__init__.py", "w").write("import os; open('/tmp/owned-1', 'w')")
"""

    async def attack(sandbox):
        await sandbox.run_python(plant)

        async def tool():
            return 1

        await sandbox.run_python("print(tools.tool())", tools={"tool": tool})
        await sandbox.run_python("1 / 0")
        await sandbox.read_folder(".", tmp_path / "out")
        await sandbox.snapshot()
        await (await sandbox.start(["true"])).wait(5)
        return await sandbox.list("/tmp")

    assert "owned-1" not in inside(attack, environment={"PYTHONPATH": "/workspace"})


def test_a_program_cannot_take_the_place_of_the_interpreter(inside):
    plant = (
        "import os\nfor n in ('python3', 'sh', 'ls'): open(n, 'w').write('#!/bin/sh\\necho BREACH'); os.chmod(n, 0o755)"
    )

    async def attack(sandbox):
        await sandbox.run_python(plant)
        return await sandbox.run(["ls"]), await sandbox.run(["python3", "-c", "print(1)"])

    listing, python = inside(attack)
    assert "BREACH" not in listing.stdout + python.stdout


def test_calls_beside_each_other_do_not_read_each_others_output(inside):
    import asyncio

    spy = "import glob\nfor path in glob.glob('/proc/[0-9]*/fd/1'):\n  try: open(path, 'w').write('FORGED')\n  except OSError: pass\n"

    async def attack(sandbox):
        victim = asyncio.create_task(sandbox.run_python("import time; time.sleep(1); print('mine')"))
        await asyncio.sleep(0.3)
        await sandbox.run_python(spy)
        return await victim

    assert inside(attack).stdout == "mine\n"


@pytest.mark.parametrize("program", ["os._exit(0)", "os.abort()", "os.kill(os.getpid(), 19)", "ctypes.string_at(0)"])
def test_a_program_that_dies_oddly_takes_nothing_with_it(program, inside):
    code = f"import ctypes, os\nif os.fork():\n  {program}\nimport time; time.sleep(100)"
    result = inside(lambda sandbox: sandbox.run_python(code, timeout=1))
    assert result.stdout == ""
