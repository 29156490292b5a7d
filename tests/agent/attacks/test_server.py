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


@pytest.mark.parametrize(
    "harm", ["os.rmdir('/box/shm')", "os.chmod('/box/work', 0)", "os.rename('/box/work', '/box/x')"]
)
def test_a_folder_of_the_workspace_that_is_gone_is_the_programs_own_harm(harm, inside):
    async def attack(sandbox):
        result = await sandbox.run_python(f"import os; {harm}; print('done')")
        await sandbox.reset()
        return result

    result = inside(attack)
    assert (result.stdout, result.exit_code, result.left_files) == ("done\n", 0, True)


def test_a_reset_is_not_blocked_by_the_names_it_uses(inside):
    plant = """
import os
for n in range(1, 9): os.makedirs(f"/box/.baleen-removed-{n}/full/er")
for n in range(9): os.makedirs(f"/box/work/{n}/a/b/c")
"""

    async def attack(sandbox):
        await sandbox.run_python(plant)
        await sandbox.reset()
        return await sandbox.list("."), await sandbox.list("/box")

    assert inside(attack) == ([], ["shm/", "tmp/", "work/"])


def test_programs_die_before_their_server_when_memory_runs_out(inside):
    from pathlib import Path

    async def attack(sandbox):
        server = Path(f"/proc/{sandbox.connection._guest}/oom_score_adj")
        own = "import os; print(open('/proc/self/oom_score_adj').read())"
        executed = await sandbox.run(["cat", "/proc/self/oom_score_adj"])
        return int(executed.stdout), int((await sandbox.run_python(own)).stdout), int(server.read_text())

    executed, forked, server = inside(attack)
    assert executed == forked >= 1000
    assert server == 500


def test_a_fork_of_the_server_has_forgotten_the_snapshot_and_other_jobs(inside):
    spy = """
import sys
frame = sys._getframe()
while frame:
    server = frame.f_locals.get("self")
    if hasattr(server, "workspace"): print(len(server.jobs), len(server.workspace._snapshot)); break
    frame = frame.f_back
"""

    async def attack(sandbox):
        await sandbox.write("secret", b"hunter2")
        await sandbox.snapshot()
        await sandbox.start(["sleep", "60"])
        return (await sandbox.run_python(spy)).stdout

    assert inside(attack) == "0 0\n"


def test_names_that_are_too_long_together_are_refused_and_nothing_else_is(inside, tmp_path):
    plant = r"""
import os
for _ in range(14):
    os.mkdir(b"\xff" * 250); os.chdir(b"\xff" * 250)
for n in range(1000): open(b"\xff" * 240 + b"%d" % n, "w").close()
"""

    async def attack(sandbox):
        assert (await sandbox.run_python(plant)).stderr == ""
        with pytest.raises(OSError, match="too long together"):
            await sandbox.read_folder(".", tmp_path / "out")

    inside(attack)
