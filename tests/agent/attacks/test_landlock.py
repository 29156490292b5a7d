"""The same intentions against the tier for machines on which bubblewrap cannot run: what it promises holds there too.

Not promised there, and so not attacked: loopback, /proc, a bound on all files together.
"""

import asyncio
import os
import subprocess
import textwrap
import uuid
import warnings
from pathlib import Path

import pytest
from attack_program import LIMITS, PRELUDE

from baleen.agent.sandbox import Sandbox, SandboxUnavailable, WeakSandboxWarning


@pytest.fixture
def inside():
    def run(attack, **options):
        async def main():
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    sandbox = await Sandbox(LIMITS, tier="landlock", **options).__aenter__()
                except SandboxUnavailable as reason:
                    pytest.skip(str(reason))
            try:
                assert [w for w in said if w.category is WeakSandboxWarning and "landlock" in str(w.message)]
                assert sandbox.tier == "landlock"
                result = await attack(sandbox)
                assert (await sandbox.run(["echo", "alive"])).stdout == "alive\n"
                return result
            finally:
                await sandbox.close()

        return asyncio.run(main())

    return run


@pytest.fixture
def attempt(inside):
    def run(code, timeout=10.0):
        program = PRELUDE + textwrap.dedent(code) + "\nprint('tried')\n"
        result = inside(lambda sandbox: sandbox.run_python(program, timeout=timeout))
        assert "BREACH" not in result.stdout, result
        assert result.stdout.endswith("tried\n"), result
        return result

    return run


def test_files_of_the_host_can_be_neither_read_nor_written(attempt):
    secret = Path(f"/tmp/baleen-secret-{uuid.uuid4().hex}")
    secret.write_text("hunter2")
    secret.chmod(0o666)
    try:
        attempt(f"""
            must_not_open({str(secret)!r}, "/etc/passwd", "/etc/shadow", "/etc/hostname", "/proc/1/environ",
                          "/proc/self/environ", "/sys/kernel/uevent_seqnum", {__file__!r})
            for path in ("/tmp", "/var/tmp", "/dev/shm", "/home", "/etc", "/proc", "/root", "/run"):
                must_fail(path, os.listdir, path)
                must_fail(path, open, path + "/x", "w")
            for call in (os.unlink, os.rmdir): must_fail("remove", call, {str(secret)!r})
            must_fail("rename", os.rename, {str(secret)!r}, "here")
            must_fail("link", os.link, {str(secret)!r}, "here")
            must_fail("usr", open, "/usr/x", "w")
        """)
        assert secret.read_text() == "hunter2"
    finally:
        secret.unlink()


def test_no_socket_can_be_had(attempt):
    tried = attempt("""
        for family in range(1, 46):
            for kind in (1, 2, 3, 5):
                must_fail((family, kind), socket.socket, family, kind)
        left, right = socket.socketpair()
        left.send(b"x"); assert right.recv(1) == b"x"
    """)
    assert tried.exit_code == 0


def test_processes_of_the_host_and_the_server_are_not_signalled(attempt):
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    victim = subprocess.Popen(["sleep", "60"], **user)
    try:
        attempt(f"""
            for process in ({victim.pid}, os.getppid(), 1):
                for number in (9, 15, 19): must_fail(process, os.kill, process, number)
            import resource
            must_fail("limits", resource.prlimit, os.getppid(), resource.RLIMIT_NOFILE, (1, 1))
            must_fail("priority", os.setpriority, os.PRIO_PROCESS, os.getppid(), 19)
            for process in ({victim.pid}, os.getppid()):
                must_fail("affinity", os.sched_setaffinity, process, {{0}})
            os.sched_setaffinity(0, os.sched_getaffinity(0))
            must_return_error("ptrace", libc.ptrace, 16, os.getppid(), 0, 0)
            must_not_open(f"/proc/{{os.getppid()}}/mem", f"/proc/{{os.getppid()}}/fd/3")
        """)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_the_kernel_is_closed_as_in_the_best_tier(attempt):
    tried = attempt("""
        must_return_error("unshare", libc.unshare, 0x10000000)
        must_return_error("mount", libc.mount, b"none", b"x", b"tmpfs", 0, b"")
        must_return_error("memfd", libc.syscall, 319, b"x", 0)
        must_return_error("keyctl", libc.syscall, 250, 0, -3, 0, 0, 0)
        must_return_error("bpf", libc.syscall, 321, 0, 0, 0)
        must_return_error("io_uring", libc.syscall, 425, 8, 0)
        must_return_error("a socket behind x32", libc.syscall, 0x40000029, 2, 1, 0)
        must_fail("setuid", os.setuid, 0)
        must_fail("chroot", os.chroot, ".")
    """)
    assert tried.exit_code == 0


def test_secrets_of_the_environment_are_not_seen(attempt, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    attempt("if 'hunter2' in str(os.environ): breach()")


def test_files_go_through_no_link_to_the_host(inside):
    async def attack(sandbox):
        await sandbox.run(["sh", "-c", "ln -s /etc/passwd link; ln -s /etc folder; ln -s / root"])
        for path in ("link", "folder/passwd", "root/etc/passwd", "/etc/passwd", "../../etc/passwd"):
            with pytest.raises(OSError):  # noqa: PT011 - which one depends on the path
                await sandbox.read(path)
            with pytest.raises(OSError):  # noqa: PT011
                await sandbox.write(path, b"evil")

    inside(attack)


def test_orphans_end_with_their_call_and_everything_with_the_sandbox(inside):
    mark = f"4{uuid.uuid4().int % 10**8}"
    orphans = f"setsid sleep {mark} & (setsid nohup sleep {mark} &) ; sleep 0.2"

    def alive():
        return subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True).stdout.split()

    async def attack(sandbox):
        stays = await sandbox.start(["sleep", mark])
        await sandbox.run(["sh", "-c", orphans])
        assert len(alive()) == 1
        assert stays.exit_code is None
        await sandbox.start(["sh", "-c", orphans + "; sleep 100"])
        await asyncio.sleep(0.5)
        assert len(alive()) > 1

    inside(attack)
    assert alive() == []


def test_limits_hold(inside):
    async def attack(sandbox):
        return (
            await sandbox.run_python("x = bytearray(10 << 30)"),
            await sandbox.run_python("open('x', 'wb').write(bytes(100 << 20))"),
            await sandbox.run(["bash", "-c", "f(){ f|f& }; f; sleep 30"], timeout=1),
            await sandbox.run_python("while True: print('x' * 1000)", timeout=0.5),
        )

    memory, disk, bomb, output = inside(attack)
    assert memory.stderr == "MemoryError\n"
    assert disk.exit_code != 0
    assert bomb.exit_code != 0
    assert (output.timed_out, output.truncated) == (True, True)


def test_nothing_outlives_a_server_that_was_killed(inside):
    mark = f"4{uuid.uuid4().int % 10**8}"

    def alive():
        return subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True).stdout.split()

    async def main():
        async with Sandbox(LIMITS, tier="landlock") as sandbox:
            await sandbox.start(["sleep", mark])
            if sandbox._group is not None:
                await sandbox.start(["sh", "-c", f"setsid sleep {mark} & sleep {mark}"])
            await asyncio.sleep(0.5)
            started = len(alive())
            os.kill(sandbox.connection._guest, 9)
            await asyncio.sleep(0.2)
        return started

    async def nothing(_):
        return None

    inside(nothing)  # skips where this tier is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert asyncio.run(main()) >= 1
    assert alive() == []
