"""Programs that stay, input, folders, snapshots, pools: what an environment builds on, in the best tier."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest
from live import LIMITS, in_sandbox

from baleen.agent.sandbox import Sandbox, SandboxError, SandboxPool

pytestmark = pytest.mark.usefixtures("isolation")


def test_a_process_speaks_and_lives_beside_calls():
    async def work(sandbox):
        shell = await sandbox.start(["bash"])
        await shell.send(b"x=5\n")
        await sandbox.run(["true"])
        await sandbox.run_python("1")
        await shell.send(b"echo $((x + 1)); echo wrong >&2\n")
        said = b""
        while said.count(b"\n") < 2:
            said += await shell.receive(5)
        return said, shell.exit_code

    said, exit_code = in_sandbox(work)
    assert sorted(said.split()) == [b"6", b"wrong"]
    assert exit_code is None


def test_a_process_that_ends_says_all_it_said_and_how_it_ended():
    async def work(sandbox):
        process = await sandbox.start(["sh", "-c", "seq 20000; exit 3"])
        said = b""
        while piece := await process.receive(5):
            said += piece
        return said, await process.wait(5), await process.receive(1)

    said, exit_code, after = in_sandbox(work)
    assert said.split() == [b"%d" % n for n in range(1, 20001)]
    assert (exit_code, after) == (3, b"")


def test_waiting_for_output_ends_and_loses_nothing():
    async def work(sandbox):
        process = await sandbox.start(["cat"])
        with pytest.raises(TimeoutError):
            await process.receive(0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.receive(60), 0.1)  # a caller that goes away
        await process.send(b"late")
        return await process.receive(5)

    assert in_sandbox(work) == b"late"


def test_input_of_a_process_ends_when_told():
    async def work(sandbox):
        process = await sandbox.start(["wc", "-c"])
        await process.send(b"x" * 1_000_000)
        await process.send(b"y", last=True)
        answer = await process.receive(5)
        with pytest.raises(BrokenPipeError):
            await process.send(b"more")
        return answer

    assert in_sandbox(work) == b"1000001\n"


def test_killing_a_process_kills_what_it_started_and_nothing_else():
    async def work(sandbox):
        other = await sandbox.start(["sleep", "900"])
        process = await sandbox.start(["sh", "-c", "setsid sleep 700 & sleep 700 & wait"])
        await asyncio.sleep(0.3)
        await process.kill()
        await process.kill()
        left = await sandbox.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])
        return process.exit_code, left.stdout, other.exit_code

    exit_code, left, other = in_sandbox(work)
    assert exit_code == -9
    assert "700" not in left
    assert "900" in left
    assert other is None


def test_a_process_that_cannot_be_executed_says_so():
    async def work(sandbox):
        process = await sandbox.start(["no-such-program"])
        return await process.receive(5), await process.wait(5)

    said, exit_code = in_sandbox(work)
    assert b"no-such-program" in said
    assert exit_code == 127


def test_closing_the_sandbox_ends_its_processes_and_those_who_wait_for_them():
    async def work(sandbox):
        process = await sandbox.start(["sleep", "900"])
        waiting = asyncio.create_task(process.wait(60))
        receiving = asyncio.create_task(process.receive(60))
        await asyncio.sleep(0.2)
        await sandbox.close()
        for task in (waiting, receiving):
            with pytest.raises(SandboxError):
                await task

    in_sandbox(work)


def test_calls_run_beside_each_other():
    async def work(sandbox):
        began = time.monotonic()
        results = await asyncio.gather(*(sandbox.run(["sh", "-c", f"sleep 0.8; echo {n}"]) for n in range(6)))
        return [int(result.stdout) for result in results], time.monotonic() - began

    numbers, seconds = in_sandbox(work)
    assert numbers == list(range(6))
    assert seconds < 4


def test_a_cancelled_call_is_ended_inside():
    async def work(sandbox):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sandbox.run(["sleep", "800"], timeout=60), 0.3)
        for _ in range(50):
            left = await sandbox.run(["sh", "-c", "cat /proc/[0-9]*/comm"])
            if "sleep" not in left.stdout:
                return True
        return False

    assert in_sandbox(work)


def test_input_folder_and_environment_of_a_call():
    async def work(sandbox):
        await sandbox.write("a/b/file", b"")
        script = "cat; pwd; ls; echo $MINE $ALL"
        result = await sandbox.run(
            ["sh", "-c", script], input=b"\x00\xff" * 200_000, cwd="a/b", environment={"MINE": "m"}
        )
        python = await sandbox.run_python("import os; os.environ['ALL']")
        return result, python

    result, python = in_sandbox(work, environment={"ALL": "all"})
    assert result.stdout.endswith("/work/a/b\nfile\nm all\n")
    assert len(result.stdout) > 400_000
    assert python.stdout == "'all'\n"


def test_a_missing_folder_is_the_calls_failure():
    result = in_sandbox(lambda sandbox: sandbox.run(["true"], cwd="nowhere"))
    assert result.exit_code == 1
    assert "nowhere: No such file or directory" in result.stderr


def test_folders_go_in_and_come_out_as_they_were(tmp_path):
    source = tmp_path / "in"
    (source / "deep" / "empty").mkdir(parents=True)
    (source / "deep" / "script").write_text("#!/bin/sh\necho ran\n")
    (source / "deep" / "script").chmod(0o755)
    (source / "link").symlink_to("deep/script")
    (source / "bytes").write_bytes(bytes(range(256)))

    async def work(sandbox):
        await sandbox.write_folder(source, "copy")
        result = await sandbox.run(["./copy/link"])
        await sandbox.read_folder("copy", tmp_path / "out")
        return result.stdout, await sandbox.list("copy"), await sandbox.list("copy/deep")

    ran, names, deep = in_sandbox(work)
    assert ran == "ran\n"
    assert (names, deep) == (["bytes", "deep/", "link"], ["empty/", "script"])
    out = tmp_path / "out"
    assert (out / "bytes").read_bytes() == bytes(range(256))
    assert (out / "deep" / "script").stat().st_mode & 0o777 == 0o755
    assert (out / "deep" / "script").stat().st_mtime_ns == (source / "deep" / "script").stat().st_mtime_ns
    assert (out / "link").readlink() == (source / "link").readlink()
    assert (out / "deep" / "empty").is_dir()


def test_a_reset_brings_back_the_snapshot_and_ends_processes():
    async def work(sandbox):
        await sandbox.run(["sh", "-c", "mkdir -p a/b; echo 1 > a/b/c; chmod 400 a/b/c; ln -s b a/l; echo t > /tmp/t"])
        await sandbox.snapshot()
        process = await sandbox.start(["sh", "-c", "while true; do echo x > new; done"])
        await sandbox.run(["sh", "-c", "chmod 600 a/b/c; echo 2 > a/b/c; rm a/l /tmp/t; mkdir z; chmod 0 z; sleep 0.1"])
        await sandbox.reset()
        show = "find . /tmp/ /dev/shm/ | sort; cat a/b/c /tmp/t; stat -c %a a/b/c"
        return process, (await sandbox.run(["sh", "-c", show])).stdout.split()

    process, shown = in_sandbox(work)
    assert process.exit_code == -9
    assert shown == [".", "./a", "./a/b", "./a/b/c", "./a/l", "/dev/shm/", "/tmp/", "/tmp/t", "1", "t", "400"]


def test_links_show_folders_of_the_workspace_at_the_root():
    async def work(sandbox):
        await sandbox.run(["sh", "-c", "echo hi > /app/file"])
        await sandbox.reset()
        return await sandbox.list("/app"), await sandbox.run(["ls", "-d", "/app"])

    names, shown = in_sandbox(work, links={"/app": "app"})
    assert names == []
    assert shown.exit_code == 0


def test_a_pool_prepares_once_and_gives_what_was_reset():
    prepared = []

    async def prepare(sandbox):
        prepared.append(sandbox)
        await sandbox.write("data", b"fresh")

    async def main():
        async with SandboxPool(LIMITS, size=2, prepare=prepare) as pool:

            async def use(n):
                async with pool.take() as sandbox:
                    before = await sandbox.read("data"), await sandbox.list()
                    await sandbox.write("data", b"used")
                    await sandbox.write(f"more{n}", b"")
                    return before

            return await asyncio.gather(*map(use, range(8)))

    assert asyncio.run(main()) == [(b"fresh", ["data"])] * 8
    assert len(prepared) <= 2


def test_a_pool_replaces_a_sandbox_that_died_or_was_left_in_doubt():
    async def main():
        async with SandboxPool(LIMITS, size=1) as pool:
            async with pool.take() as first:
                await first.close()
            with pytest.raises(ValueError, match="mine"):
                async with pool.take() as second:
                    raise ValueError("mine")
            async with pool.take() as third:
                assert len({id(first), id(second), id(third)}) == 3
                return (await third.run_python("1")).stdout

    assert asyncio.run(main()) == "1\n"


def test_a_hundred_sandboxes_live_at_once_on_one_thread_more():
    threads = threading.active_count()

    async def main():
        async with SandboxPool(LIMITS, size=100) as pool:
            everybody = asyncio.Event()
            count = 0

            async def use(n):
                nonlocal count
                async with pool.take() as sandbox:
                    count += 1
                    if count == 100:
                        everybody.set()
                    await everybody.wait()
                    return (await sandbox.run_python(f"{n} * {n}", timeout=60)).stdout

            answers = await asyncio.gather(*map(use, range(100)))
            return answers, threading.active_count()

    answers, during = asyncio.run(main())
    assert answers == [f"{n * n}\n" for n in range(100)]
    assert during <= threads + 4


def test_one_sandbox_serves_one_event_loop_after_another():
    sandbox = Sandbox(LIMITS)

    async def call():
        return (await sandbox.run_python("1")).stdout

    asyncio.run(sandbox.__aenter__())
    assert [asyncio.run(call()), asyncio.run(call())] == ["1\n", "1\n"]
    asyncio.run(sandbox.close())


def test_a_guest_that_is_killed_is_a_sandbox_error_for_all_who_wait():
    async def work(sandbox):
        calls = [asyncio.create_task(sandbox.run(["sleep", "60"], timeout=60)) for _ in range(3)]
        await asyncio.sleep(0.3)
        os.kill(sandbox.connection._guest, signal.SIGKILL)
        results = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(SandboxError, match="gone"):
            await sandbox.run(["true"])
        return results

    assert [type(result) for result in in_sandbox(work)] == [SandboxError] * 3


@pytest.mark.parametrize("tier", ["bubblewrap", "landlock"])
def test_nothing_is_left_when_the_host_is_killed(tier):
    mark = f"5{uuid.uuid4().int % 10**8}"
    program = f"""
import asyncio
from baleen.agent.sandbox import Sandbox
async def main():
    async with Sandbox(tier={tier!r}) as sandbox:
        await sandbox.start(["sh", "-c", "setsid sleep {mark} & sleep {mark}"])
        await asyncio.sleep(0.3)
        print((await sandbox.run(["true"])).exit_code, flush=True)
        await sandbox.run(["sleep", "{mark}"], timeout=600)
asyncio.run(main())
"""
    host = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE)
    assert host.stdout.readline() == b"0\n"
    assert alive(mark)
    host.kill()
    host.wait()
    deadline = time.monotonic() + 10
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(mark)


def alive(mark):
    """Processes of the host with `mark` among their arguments, this one's program text aside."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if name.isdigit() and file.read().split(b"\0")[:2] == [b"sleep", mark.encode()]:
                    found.append(name)
        except OSError:
            continue
    return found


def test_a_forked_host_has_sandboxes_of_its_own():
    program = """
import asyncio, os
from baleen.agent.sandbox import Sandbox
async def main():
    async with Sandbox() as sandbox:
        return (await sandbox.run_python("6 * 7")).stdout.strip()
print(asyncio.run(main()), flush=True)
child = os.fork()
print(asyncio.run(main()), flush=True)
if child:
    os.waitpid(child, 0)
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "42\n42\n42\n", done.stderr
    assert "WeakSandboxWarning" not in done.stderr


@pytest.mark.parametrize("argv", [[], "ls -l"])
def test_what_is_no_command_is_refused(argv):
    with pytest.raises(ValueError, match="a program and its arguments"):
        in_sandbox(lambda sandbox: sandbox.run(argv))


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_what_is_no_time_is_refused(timeout):
    with pytest.raises(ValueError, match="a timeout is more than 0"):
        in_sandbox(lambda sandbox: sandbox.run_python("1", timeout=timeout))


def test_odd_requests_fail_alone_and_leave_the_server_alive():
    async def work(sandbox):
        for path in ("\ud800", "a\0b", "x" * 5000, "/".join(["x"] * 3000)):
            with pytest.raises(OSError):  # noqa: PT011 - which one depends on the path
                await sandbox.write(path, b"")
        odd = [
            await sandbox.run(["echo", "a\0b"]),
            await sandbox.run(["true"], environment={"A=B": "x", "": "y"}),
            await sandbox.run(["true"], cwd="a\0b"),
            await sandbox.run([""]),
        ]
        return [result.exit_code for result in odd], (await sandbox.run_python("6 * 7")).stdout

    codes, answer = in_sandbox(work)
    assert 0 not in (codes[0], codes[2], codes[3])
    assert answer == "42\n"


def test_a_start_that_is_cancelled_at_any_moment_leaves_no_process_and_no_descriptor():
    async def main():
        async with Sandbox(LIMITS):  # what all sandboxes share is open from here on
            pass
        files, processes = len(os.listdir("/proc/self/fd")), _children()
        for moment in range(40):
            starting = asyncio.ensure_future(Sandbox(LIMITS).__aenter__())
            await asyncio.sleep(moment / 1000)
            starting.cancel()
            try:
                await (await starting).close()
            except asyncio.CancelledError:
                continue
        assert _children() == processes
        assert len(os.listdir("/proc/self/fd")) == files

    asyncio.run(main())


def _children():
    """Child processes of this one."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                        found.add(int(entry))
            except OSError:
                continue
    return found
