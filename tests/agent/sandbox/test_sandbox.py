"""A sandbox must hold against code that means harm. Every test attacks or measures a real one."""

import asyncio
import os
import time
import uuid
import warnings

import pytest

from baleen.agent.sandbox import Limits, Sandbox, SandboxError, SandboxUnavailable, WeakSandboxWarning
from baleen.agent.sandbox.seccomp import seccomp_filter

MIB = 1 << 20
SMALL = Limits(memory_bytes=256 * MIB, processes=12, disk_bytes=8 * MIB, output_bytes=10_000)


def in_sandbox(attack, limits=SMALL, **options):
    """Runs the coroutine function `attack` with a live sandbox."""

    async def main():
        async with Sandbox(limits, **options) as sandbox:
            return await attack(sandbox)

    return asyncio.run(main())


def python(code, timeout=10.0, limits=SMALL):
    return in_sandbox(lambda sandbox: sandbox.run(["python3", "-c", code], timeout=timeout), limits)


@pytest.fixture(scope="module", autouse=True)
def _isolation():
    async def probe():
        async with Sandbox(SMALL):
            pass

    try:
        asyncio.run(probe())
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))


def test_a_program_answers_with_streams_and_exit_code():
    result = python("import sys; print('out', 1 + 1); print('err', file=sys.stderr); sys.exit(3)")
    assert (result.stdout, result.stderr, result.exit_code, result.timed_out) == ("out 2\n", "err\n", 3, False)


def test_the_tier_is_told():
    async def attack(sandbox):
        return sandbox.tier

    assert in_sandbox(attack) == "bubblewrap"


def test_a_missing_program_is_reported_not_raised():
    result = in_sandbox(lambda sandbox: sandbox.run(["no-such-program"]))
    assert result.exit_code == 127
    assert "no-such-program" in result.stderr


def test_the_workspace_lives_as_long_as_the_sandbox():
    async def attack(sandbox):
        await sandbox.write("folder/a.txt", b"\x00\xffdata")
        result = await sandbox.run(["sh", "-c", "wc -c < folder/a.txt; echo more > b.txt"])
        return result.stdout.strip(), await sandbox.read("b.txt"), await sandbox.read("folder/a.txt")

    assert in_sandbox(attack) == ("6", b"more\n", b"\x00\xffdata")


def test_reading_what_is_not_a_file_of_the_workspace_fails_and_harms_nothing():
    async def attack(sandbox):
        await sandbox.run(["sh", "-c", "mkfifo pipe; ln -s /proc/1/environ link; truncate -s 4M sparse"])
        for path, error in (("none", FileNotFoundError), ("pipe", OSError), ("link", PermissionError)):
            with pytest.raises(error):
                await sandbox.read(path)
        with pytest.raises(PermissionError):
            await sandbox.write("../escape", b"")
        return await sandbox.run(["echo", "alive"])

    assert in_sandbox(attack).stdout == "alive\n"


def test_there_is_no_network():
    code = """
import socket
for family, address in ((socket.AF_INET, ("1.1.1.1", 53)), (socket.AF_INET, ("127.0.0.1", 22))):
    try:
        socket.create_connection(address, timeout=1); print("CONNECTED")
    except OSError as error:
        print("refused", error.errno)
try:
    socket.socket(40, socket.SOCK_STREAM); print("VSOCK")
except OSError:
    print("no vsock")
print(socket.if_nameindex())
"""
    result = python(code)
    assert "CONNECTED" not in result.stdout
    assert "no vsock" in result.stdout
    assert "'lo'" in result.stdout
    assert "eth" not in result.stdout


def test_the_hosts_files_are_not_there(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("host")
    secret.chmod(0o644)
    home = os.path.expanduser("~")
    code = f"""
import os
for path in ("/etc/shadow", "/etc/hostname", {home!r}, {str(secret)!r}, {os.getcwd()!r}, "/sys", "/var", "/mnt"):
    print(os.path.exists(path), path)
"""
    result = python(code)
    assert result.exit_code == 0
    assert "True" not in result.stdout


def test_the_file_system_outside_the_workspace_cannot_be_written():
    code = """
import os
for path in ("/usr/x", "/x", "/dev/x", "/etc/x", "/opt/x", "/bin/x"):
    try:
        open(path, "w"); print("WROTE", path)
    except OSError:
        pass
"""
    assert python(code).stdout == ""


def test_secrets_of_the_environment_are_not_seen(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2")
    result = in_sandbox(lambda sandbox: sandbox.run(["sh", "-c", "env; cat /proc/*/environ /proc/*/cmdline 2>&1"]))
    assert "PATH=" in result.stdout
    assert "hunter2" not in result.stdout


def test_a_fork_bomb_meets_the_limit_and_leaves_nothing():
    code = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(30); os._exit(0)
        count += 1
except OSError:
    print(count, flush=True)
"""

    async def attack(sandbox):
        result = await sandbox.run(["python3", "-c", code], timeout=10)
        bomb = await sandbox.run(["bash", "-c", "f(){ f|f& }; f; sleep 30"], timeout=1)
        after = await sandbox.run(["sh", "-c", "ls /proc | grep -c '^[0-9]'"])
        return result, bomb, after

    result, bomb, after = in_sandbox(attack)
    assert int(result.stdout) == SMALL.processes - 1  # the program itself is one of them
    assert bomb.exit_code != 0
    assert int(after.stdout) <= 4  # the server, the shell, ls and grep


def test_one_process_cannot_take_more_memory_than_allowed():
    result = python("x = bytearray(1 << 30); print('GOT')")
    assert "MemoryError" in result.stderr
    assert "GOT" not in result.stdout


def test_many_processes_together_cannot_take_more_memory_than_allowed():
    code = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        break
x = bytearray(150 << 20)
time.sleep(20)
"""
    result = python(code, timeout=15)
    assert result.out_of_memory
    assert not result.timed_out


def test_the_disk_fills_up_and_stays_bounded():
    code = """
import os
total = 0
for folder in ("/workspace", "/tmp", "/dev/shm"):
    try:
        for i in range(64):
            with open(f"{folder}/{i}", "wb", buffering=0) as file:
                total += file.write(bytes(1 << 20))
    except OSError as error:
        print(error.errno)
print(total >> 20)
"""
    result = python(code)
    assert result.stdout.split()[-1] == "8"


def test_memory_that_no_limit_counts_cannot_be_had():
    result = python("import os\ntry: os.memfd_create('x'); print('GOT')\nexcept OSError as e: print(e.errno)")
    assert result.stdout.strip() == "1"


def test_a_flood_of_output_is_cut_and_counted():
    result = in_sandbox(lambda sandbox: sandbox.run(["sh", "-c", "yes | head -c 50000000; echo end >&2"], timeout=20))
    assert len(result.stdout) + len(result.stderr) == SMALL.output_bytes
    assert result.truncated
    assert result.exit_code == 0


def test_a_timeout_ends_the_call_and_all_it_started():
    mark = f"mark-{uuid.uuid4().hex}"
    script = f"setsid sh -c 'exec -a {mark} sleep 1000' & (setsid nohup sleep 1000 &) ; echo begun; exec sleep 1000"

    async def attack(sandbox):
        began = time.monotonic()
        result = await sandbox.run(["bash", "-c", script], timeout=0.5)
        seconds = time.monotonic() - began
        after = await sandbox.run(["sh", "-c", "cat /proc/*/cmdline 2>/dev/null | tr '\\0' ' '"])
        return result, seconds, after.stdout

    result, seconds, after = in_sandbox(attack)
    assert result.timed_out
    assert result.stdout == "begun\n"
    assert result.exit_code < 0
    assert seconds < 5
    assert "sleep 1000" not in after
    assert not _host_processes_with(mark)


def test_background_processes_end_with_their_call():
    async def attack(sandbox):
        began = time.monotonic()
        result = await sandbox.run(["bash", "-c", "sleep 1000 & echo done"], timeout=20)
        return result, time.monotonic() - began

    result, seconds = in_sandbox(attack)
    assert (result.stdout, result.timed_out) == ("done\n", False)
    assert seconds < 5


def test_leaving_the_sandbox_leaves_no_process():
    mark = f"mark-{uuid.uuid4().hex}"

    async def attack(sandbox):
        running = asyncio.create_task(sandbox.run(["bash", "-c", f"exec -a {mark} sleep 1000"], timeout=0.8))
        await asyncio.sleep(0.4)
        seen = _host_processes_with(mark)
        await running
        return seen

    assert in_sandbox(attack)
    assert not _host_processes_with(mark)


def test_the_server_cannot_be_killed_debugged_or_read():
    code = """
import os, signal, ctypes
for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGCHLD):
    os.kill(1, number)
for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/fd/3", "/proc/1/maps"):
    try:
        open(path, "rb").read(1); print("OPENED", path)
    except OSError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, 1, 0, 0), libc.unshare(0x10000000), libc.mount(b"x", b"/tmp", b"tmpfs", 0, 0))
"""

    async def attack(sandbox):
        first = await sandbox.run(["python3", "-c", code])
        return first, await sandbox.run(["echo", "alive"])

    first, second = in_sandbox(attack)
    assert first.stdout == "-1 -1 -1\n"
    assert second.stdout == "alive\n"


def test_there_are_no_capabilities_and_a_filter_is_on():
    status = in_sandbox(lambda sandbox: sandbox.run(["cat", "/proc/self/status"])).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_python3_is_the_base_interpreter():
    import sys

    result = python("import sys, sqlite3, ssl; print(sys.version_info[:2], sys.executable)")
    assert str(sys.version_info[:2]) in result.stdout
    assert "shims" not in result.stdout


def test_a_python_call_costs_less_than_half_of_an_interpreters_start():
    async def attack(sandbox):
        calls, starts = [], []
        for _ in range(30):
            for seconds, work in (
                (calls, lambda: sandbox.run_python("1 + 1")),
                (starts, lambda: sandbox.run(["python3", "-I", "-S", "-c", "1 + 1"])),
            ):
                began = time.perf_counter()
                await work()
                seconds.append(time.perf_counter() - began)
        return min(calls), min(starts)

    # Compared, and the minimum, because other work may share the processor. Alone it is 1 to 3 ms.
    call, start = in_sandbox(attack)
    assert call < start / 2


def test_a_sandbox_that_was_left_says_so():
    async def main():
        async with Sandbox(SMALL) as sandbox:
            pass
        with pytest.raises((SandboxError, RuntimeError)):
            await sandbox.run(["true"])

    asyncio.run(main())


def test_the_tier_without_isolation_must_be_allowed():
    with pytest.raises(SandboxUnavailable, match="allow_weak"):
        in_sandbox(lambda sandbox: sandbox.run(["true"]), tier="none")


def test_the_weak_tier_is_loud_and_still_bounded(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2")
    mark = f"mark-{uuid.uuid4().hex}"

    async def attack(sandbox):
        orphan = f"import os, time\nif os.fork() == 0:\n    os.setsid(); open('{mark}', 'w'); time.sleep(1000)\n"
        return (
            sandbox.tier,
            await sandbox.run(["python3", "-c", "import os; print(os.environ.get('API_TOKEN'), os.getuid())"]),
            await sandbox.run(["python3", "-c", orphan + "time.sleep(1000)"], timeout=1),
            await sandbox.run(["sh", "-c", f"ls {mark}; ps -eo args 2>/dev/null | grep -c '[t]ime.sleep(1000)'"]),
            await sandbox.run_python("x = bytearray(1 << 30)"),
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tier, environment, orphan, after, memory = in_sandbox(attack, allow_weak=True, tier="none")
    assert tier == "none"
    assert ["NO ISOLATION" in str(w.message) for w in caught if w.category is WeakSandboxWarning] == [True]
    assert environment.stdout.startswith("None")
    assert os.getuid() != 0 or environment.stdout.split()[1] == "65534"
    assert orphan.timed_out
    assert after.stdout.split()[0] == mark
    assert not _host_processes_with(mark)
    assert memory.stderr == "MemoryError\n"


def test_the_filter_is_known_for_both_common_machines_and_no_other():
    for machine in ("x86_64", "aarch64"):
        program = seccomp_filter(machine)
        assert program is not None
        assert len(program) % 8 == 0
    assert seccomp_filter("riscv64") is None


def _host_processes_with(mark):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline") as file:
                    arguments = file.read()
            except OSError:
                continue
            # The guest's own command line holds no call's arguments: requests come over its pipe.
            if mark in arguments:
                found.append(int(name))
    return found
