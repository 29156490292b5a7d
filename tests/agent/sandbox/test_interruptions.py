"""Callers that are cancelled, guests that die, answers that are forged: nothing is lost, left behind or waited for."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
import uuid

import pytest
from live import LIMITS, in_sandbox

from baleen.agent.sandbox import Sandbox, SandboxError, SandboxPool
from baleen.agent.sandbox.connection import LONGEST_HEAD, Connection
from baleen.agent.sandbox.lent_tools import ToolLoan

pytestmark = pytest.mark.usefixtures("isolation")


@contextlib.contextmanager
def standing_still(sandbox):
    """What is asked meanwhile arrives all at once afterwards."""
    os.kill(sandbox.connection._guest, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(sandbox.connection._guest, signal.SIGCONT)


def alive(mark):
    return [int(n) for n in subprocess.run(["pgrep", "-x", "-f", f"sleep {mark}"], capture_output=True).stdout.split()]


def new_mark():
    return f"4{uuid.uuid4().int % 10**8}"


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_start_that_is_cancelled_leaves_no_program():
    mark = new_mark()

    async def work(sandbox):
        with standing_still(sandbox):
            task = asyncio.create_task(sandbox.start(["sleep", mark]))
            await asyncio.sleep(0.1)
            await cancelled(task)
            await asyncio.sleep(0.1)
        await sandbox.run(["true"])
        return alive(mark), sandbox._processes

    assert in_sandbox(work) == ([], {})


def test_waiting_for_output_ends_in_time_after_a_longer_wait_was_cancelled():
    async def work(sandbox):
        process = await sandbox.start(["cat"])
        task = asyncio.create_task(process.receive(4))
        await asyncio.sleep(0.1)
        await cancelled(task)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await process.receive(0.2)
        seconds = time.monotonic() - began
        await process.send(b"late")
        return seconds, await process.receive(5)

    seconds, said = in_sandbox(work)
    assert seconds < 1.5
    assert said == b"late"


def test_who_waits_for_a_process_hears_that_the_guest_died():
    async def work(sandbox):
        process = await sandbox.start(["sleep", "900"])
        os.kill(sandbox.connection._guest, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(SandboxError):
            await process.wait(20)
        return time.monotonic() - began

    assert in_sandbox(work) < 10


def test_the_number_of_a_dead_guest_is_not_killed_again():
    async def work(sandbox):
        connection = sandbox.connection
        os.kill(connection._guest, signal.SIGKILL)
        while connection._process.poll() is None:
            await asyncio.sleep(0.01)
        other = subprocess.Popen(["sleep", "60"])
        try:
            connection._guest = other.pid  # as if the kernel had given the number away
            await sandbox.close()
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()

    in_sandbox(work)


def test_a_reset_may_end_calls_that_just_ended_by_themselves():
    mark = new_mark()

    async def work(sandbox):
        await sandbox.start(["sleep", "900"])
        call = asyncio.create_task(sandbox.run(["sleep", mark], timeout=60))
        while not alive(mark):
            await asyncio.sleep(0.02)
        with standing_still(sandbox):
            reset = asyncio.create_task(sandbox.reset())
            await asyncio.sleep(0.1)
            os.kill(alive(mark)[0], signal.SIGKILL)
        await reset
        return (await call).exit_code, (await sandbox.run(["echo", "alive"])).stdout

    assert in_sandbox(work) == (-9, "alive\n")


async def hanging_reset(pool):
    """A task that gives a sandbox back whose guest stands still, and the sandbox."""
    taken = []

    async def use():
        async with pool.take() as sandbox:
            taken.append(sandbox)
            os.kill(sandbox.connection._guest, signal.SIGSTOP)

    task = asyncio.create_task(use())
    while not taken:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    return task, taken[0]


def test_a_sandbox_whose_reset_is_cancelled_is_closed():
    async def main():
        async with SandboxPool(LIMITS, size=1) as pool:
            task, sandbox = await hanging_reset(pool)
            await cancelled(task)
            return pool._idle, sandbox._connection

    assert asyncio.run(main()) == ([], None)


def test_a_pool_that_is_closed_during_a_reset_keeps_nothing():
    async def main():
        pool = SandboxPool(LIMITS, size=1)
        task, sandbox = await hanging_reset(pool)
        await pool.close()
        os.kill(sandbox.connection._guest, signal.SIGCONT)
        await task
        return pool._idle, sandbox._connection

    assert asyncio.run(main()) == ([], None)


def test_a_close_goes_on_when_the_callers_loop_ends():
    async def main():
        sandbox = await Sandbox(LIMITS).__aenter__()
        process = sandbox.connection._process
        closing = asyncio.create_task(sandbox.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not closing.done()
        return sandbox, process

    sandbox, process = asyncio.run(main())
    deadline = time.monotonic() + 5
    while process.returncode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.returncode is not None
    assert sandbox._connection is None


def test_a_file_is_read_up_to_a_bound():
    async def work(sandbox):
        await sandbox.write("x", b"x" * 100)
        assert await sandbox.read("x", most=100) == b"x" * 100
        with pytest.raises(OSError, match="larger than the 99 bytes"):
            await sandbox.read("x", most=99)
        return await sandbox.read("x")

    assert in_sandbox(work) == b"x" * 100


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ({}, b""),
        ({"index": 2}, b"{]"),
        ({"index": 3}, b"[1]"),
        ({"index": 23}, b'[[1, "file", 420, 0, 0]]'),
        ({"index": "all"}, b"[]"),
    ],
)
def test_a_forged_folder_is_a_sandbox_error(head, body, tmp_path, monkeypatch):
    async def work(sandbox):
        async def forged(*_):
            return head, body

        monkeypatch.setattr(sandbox, "ask", forged)
        with pytest.raises(SandboxError):
            await sandbox.read_folder(".", tmp_path / "out")

    in_sandbox(work)


@pytest.mark.parametrize(
    "head", [{}, {"call": 1}, {"call": 1, "exit_code": 0, "stdout_bytes": "x", "out_of_memory": False}]
)
def test_a_forged_result_is_a_sandbox_error(head, monkeypatch):
    async def work(sandbox):
        async def forged(*_):
            return dict(head), b""

        monkeypatch.setattr(sandbox.connection, "ask", forged)
        with pytest.raises(SandboxError):
            await sandbox.run(["true"])

    in_sandbox(work)


def test_a_forged_error_is_a_sandbox_error():
    async def work(sandbox):
        connection = sandbox.connection

        async def asking():
            asked = asyncio.create_task(connection.ask({"operation": "list", "path": "."}, b"", 5.0, 77))
            await asyncio.sleep(0)
            connection._waiting[77].set_result(({"errno": "x"}, b""))
            await asked

        with pytest.raises(SandboxError):
            await sandbox.in_reactor(asking())

    in_sandbox(work)


def test_a_message_with_too_long_a_head_is_refused():
    async def work(sandbox):
        connection = Connection(sandbox.connection.launch, lambda *_: None, lambda: None)
        connection._largest_answer = 1 << 30
        connection._reader = asyncio.StreamReader()
        connection._reader.feed_data((LONGEST_HEAD + 1).to_bytes(4, "big") + bytes(4))
        with pytest.raises(SandboxError):
            await connection._receive()

    in_sandbox(work)


def test_a_program_has_a_bounded_number_of_tool_calls_under_way():
    async def main():
        started, answers = [], []

        async def waits():
            started.append(1)
            await asyncio.sleep(60)

        loan = ToolLoan({"waits": waits}, asyncio.get_running_loop())
        for _ in range(100):
            loan.serve(b'{"name": "waits", "arguments": {}}', answers.append)
        await asyncio.sleep(0.1)
        loan.end()
        return len(started), answers

    started, answers = asyncio.run(main())
    assert started + len(answers) == 100
    assert started <= 16
    assert set(answers) == {b'{"error": "too many calls at one time"}'}
