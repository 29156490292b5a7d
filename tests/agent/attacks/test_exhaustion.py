"""Attacks that want too much: processes, memory, disk, output, time. Each ends at a limit, and the sandbox goes on."""

# ruff: noqa: E501 - a program that attacks is read more easily with one step a line

import asyncio
import time

import pytest
from attack_program import LIMITS, MIB, PRELUDE


def run(program, timeout=10.0):
    return lambda sandbox: sandbox.run(["python3", "-c", PRELUDE + program], timeout=timeout)


def test_a_fork_bomb_ends_at_the_limit_of_processes(inside):
    async def attack(sandbox):
        counted = await sandbox.run_python(
            "import os, time\nn = 0\ntry:\n  while True:\n    if os.fork() == 0: time.sleep(30); os._exit(0)\n    n += 1\n"
            "except OSError:\n  print(n)"
        )
        bomb = await sandbox.run(["bash", "-c", "f(){ f|f& }; f; f; sleep 30"], timeout=1)
        left = await sandbox.run(["sh", "-c", "ls /proc | grep -c '^[0-9]'"])
        return counted, bomb, left

    counted, bomb, left = inside(attack)
    assert int(counted.stdout) == LIMITS.processes - 1
    assert bomb.exit_code != 0
    assert int(left.stdout) <= 4  # the server, the shell, ls and grep


def test_a_fork_bomb_beside_a_process_that_stays_is_swept_and_the_process_lives(inside):
    async def attack(sandbox):
        process = await sandbox.start(["cat"])
        bomb = await sandbox.run(["bash", "-c", "f(){ f|f& }; f; f; sleep 30"], timeout=1)
        await process.send(b"still here")
        answer = await process.receive(5)
        left = await sandbox.run(["sh", "-c", "ls /proc | grep -c '^[0-9]'"])
        return bomb, answer, left

    bomb, answer, left = inside(attack)
    assert bomb.exit_code != 0
    assert answer == b"still here"
    assert int(left.stdout) <= 5  # cat too


def test_a_thread_bomb_ends_at_the_limit_of_processes(inside):
    code = """
import threading
n = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start(); n += 1
except (RuntimeError, MemoryError):
    print(n, flush=True); os._exit(0)
"""
    assert int(inside(run(code)).stdout) < LIMITS.processes


@pytest.mark.parametrize("stays", [False, True], ids=["alone", "beside a process that stays"])
def test_what_detaches_itself_is_killed_with_its_call(stays, inside):
    code = """
for how in range(3):
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 65):
            if number not in (9, 19): signal.signal(number, signal.SIG_IGN) if number not in (32, 33) else None
        if how and os.fork(): os._exit(0)  # a daemon: its parent is gone
        if how == 2: libc.prctl(36, 0, 0, 0, 0)
        libc.prctl(15, b"sneaky", 0, 0, 0)
        os.chdir("/"); os.closerange(0, 64)
        time.sleep(1000)
libc.prctl(36, 0, 0, 0, 0)  # no heir of its orphans any more
time.sleep(0.3)
"""

    async def attack(sandbox):
        process = await sandbox.start(["sleep", "1000"]) if stays else None
        await sandbox.run(["python3", "-c", PRELUDE + code])
        left = await sandbox.run(["sh", "-c", "cat /proc/[0-9]*/comm"])
        assert process is None or process.exit_code is None
        return left.stdout

    left = inside(attack)
    assert "sneaky" not in left
    assert ("sleep" in left) == stays


def test_a_child_that_makes_itself_a_sibling_is_killed_too(inside):
    code = """
clone_parent = 0x8000
if libc.syscall(56, clone_parent | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    libc.prctl(15, b"sneaky", 0, 0, 0); time.sleep(1000)
time.sleep(0.2)
"""

    async def attack(sandbox):
        process = await sandbox.start(["sleep", "1000"])
        await sandbox.run(["python3", "-c", PRELUDE + code])
        return process, (await sandbox.run(["sh", "-c", "cat /proc/[0-9]*/comm"])).stdout

    _, left = inside(attack)
    assert "sneaky" not in left
    assert "sleep" in left


def test_a_hundred_gigabytes_written_end_at_the_disks_size(inside):
    code = """
written, piece = 0, bytes(1 << 20)
for folder in ("/workspace", "/tmp", "/dev/shm", "/box"):
    for number in range(100_000):
        try:
            with open(f"{folder}/{number}", "wb", buffering=0) as file: written += file.write(piece)
        except OSError: break
print(written)
"""
    assert int(inside(run(code)).stdout) <= LIMITS.disk_bytes


def test_one_file_of_a_hundred_gigabytes_ends_at_its_limit(inside):
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file, piece = open("big", "wb", buffering=0), bytes(1 << 20)
must_fail("all of it", lambda: [file.write(piece) for _ in range(100_000)])
for call in (lambda: os.truncate("big", 100 << 30), lambda: os.posix_fallocate(file.fileno(), 0, 100 << 30)):
    must_fail("at once", call)
print(os.path.getsize("big"))
"""
    result = inside(run(code))
    assert "BREACH" not in result.stdout
    assert int(result.stdout) <= LIMITS.disk_bytes


def test_a_sparse_file_is_refused_before_it_is_read(inside):
    async def attack(sandbox):
        made = await sandbox.run(
            ["sh", "-c", "truncate -s 1T sparse; truncate -s 8M a; cp --sparse=always a b; cp b c"]
        )
        for path in ("a", "b", "c"):
            assert len(await sandbox.read(path)) in (0, 8 * MIB)
        with pytest.raises(OSError, match="larger than the workspace"):
            await sandbox.snapshot()
        return made

    assert "File too large" in inside(attack).stderr


def test_ten_gigabytes_of_memory_are_refused(inside):
    code = "print('begun', flush=True)\nx = bytearray(10 << 30)\nbreach()"
    result = inside(run(code))
    assert result.stdout == "begun\n"
    assert "MemoryError" in result.stderr


def test_ten_gigabytes_in_small_pieces_are_refused(inside):
    code = "kept = []\ntry:\n  while True: kept.append(bytearray(1 << 20))\nexcept MemoryError: print(len(kept))"
    assert int(inside(run(code)).stdout) < LIMITS.memory_bytes / MIB


def test_ten_gigabytes_by_many_processes_are_refused(inside):
    code = """
for _ in range(12):
    if os.fork() == 0:
        x = bytearray(150 << 20); time.sleep(30); os._exit(0)
time.sleep(30)
"""
    result = inside(run(code, timeout=20))
    assert result.out_of_memory
    assert not result.timed_out


def test_shared_memory_counts_as_disk(inside):
    code = """
from multiprocessing import shared_memory
must_fail("shared memory", lambda: shared_memory.SharedMemory(create=True, size=100 << 20).buf.__setitem__(0, 1))
import mmap
with open("/dev/shm/x", "wb") as file: must_fail("file", file.truncate, 100 << 20)
print("tried")
"""
    result = inside(run(code))
    assert "BREACH" not in result.stdout


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_endless_print_is_cut(stream, inside):
    code = f"import sys\nwhile True: print('x' * 1000, file=sys.{stream})"
    result = inside(lambda sandbox: sandbox.run_python(code, timeout=1))
    assert (result.timed_out, result.truncated) == (True, True)
    assert len(result.stdout) + len(result.stderr) == LIMITS.output_bytes


def test_one_line_without_an_end_is_cut(inside):
    result = inside(lambda sandbox: sandbox.run(["sh", "-c", "head -c 300000000 /dev/zero | tr '\\0' x"], timeout=30))
    assert (result.exit_code, result.truncated, len(result.stdout)) == (0, True, LIMITS.output_bytes)


def test_a_process_that_prints_without_end_is_held_up_and_not_buffered(inside):
    async def attack(sandbox):
        process = await sandbox.start(["yes"])
        await asyncio.sleep(0.3)
        pieces = [await process.receive(5) for _ in range(10)]
        began = time.monotonic()
        await process.kill()
        return pieces, time.monotonic() - began

    pieces, seconds = inside(attack)
    assert all(0 < len(piece) <= 1 << 16 for piece in pieces)
    assert seconds < 5


def test_descriptors_run_out_for_the_program_only(inside):
    code = """
kept = []
try:
    while True: kept.append(os.pipe())
except OSError as error:
    print(len(kept), error.errno == errno.EMFILE)
"""
    count, right = inside(run(code)).stdout.split()
    assert right == "True"
    assert 2 * int(count) < LIMITS.open_files


def test_empty_files_without_end_are_stopped(inside):
    code = """
n = 0
while True:
    os.mkdir(f"d{n}"); n += 1
    for i in range(1000): os.close(os.open(f"d{n - 1}/{i}", os.O_CREAT | os.O_WRONLY))
    if n > 500: breach(n)
"""

    async def attack(sandbox):
        result = await sandbox.run(["python3", "-c", PRELUDE + code], timeout=60)
        await sandbox.reset()
        return result

    result = inside(attack)
    assert "BREACH" not in result.stdout
    assert result.too_many_files or "No space left" in result.stderr


def test_folders_without_end_are_removed_by_a_reset(inside):
    code = "for n in range(1500): os.mkdir('d' * 50); os.chdir('d' * 50)\nprint('deep')"

    async def attack(sandbox):
        deep = await sandbox.run(["python3", "-c", PRELUDE + code])
        await sandbox.reset()
        return deep, await sandbox.list()

    deep, after = inside(attack)
    assert deep.stdout == "deep\n", deep
    assert after == []


def test_a_loop_without_end_is_stopped_by_time(inside):
    began = time.monotonic()
    result = inside(lambda sandbox: sandbox.run_python("while True: pass", timeout=0.5))
    assert result.timed_out
    assert time.monotonic() - began < 10


def test_processor_time_is_bounded_where_waiting_is_not(inside):
    from dataclasses import replace

    limits = replace(LIMITS, cpu_seconds=1)
    result = inside(lambda sandbox: sandbox.run_python("while True: pass", timeout=60), limits)
    assert (result.timed_out, result.exit_code < 0) == (False, True)


def test_a_program_that_ignores_signals_is_killed(inside):
    code = (
        "for n in (1, 2, 3, 15, 18): signal.signal(n, signal.SIG_IGN)\nsys.stdout.close(); os.close(1); os.close(2)\n"
    )
    result = inside(run(code + "while True: time.sleep(1)", timeout=1))
    assert (result.timed_out, result.exit_code) == (True, -9)
