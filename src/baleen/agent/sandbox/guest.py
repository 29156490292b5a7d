"""The server that lives inside the sandbox. Standard library only: its source travels as `python3 -c`.

In the bubblewrap tier it is process 1 of its own process namespace: what it runs can neither kill it nor read its
memory or pipes, and when a call ends everything that the call started is killed, however it detached itself.
A frame on the pipes is two lengths, a JSON head and a binary body. One request is served at a time.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import io
import json
import os
import random
import resource
import select
import signal
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

_LENGTHS = struct.Struct(">II")
_TICK_SECONDS = 0.05
_NULL = "/dev/null"


class Server:
    """Serves `run`, `python`, `write` and `read` until the host closes the pipe."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.box = os.path.realpath(config["box"])
        self.workspace = os.path.join(self.box, "work")
        self.isolated: bool = config["isolated"]
        for name in ("work", "tmp", "shm"):
            os.makedirs(os.path.join(self.box, name), exist_ok=True)
        os.chdir(self.workspace)
        os.environ["PWD"] = self.workspace
        self.requests, self.replies = os.dup(0), os.dup(1)
        null = os.open(_NULL, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(null, descriptor)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _protect_this_process()

    def serve(self) -> None:
        """Answers requests in order."""
        self._reply({"ready": True, "python": sys.version.split()[0]}, b"")
        while (request := self._receive()) is not None:
            head, body = request
            try:
                answer, payload = getattr(self, "do_" + head.pop("operation"))(body=body, **head)
            except OSError as error:
                answer, payload = {"errno": error.errno or errno.EIO, "message": error.strerror or str(error)}, b""
            self._reply(answer, payload)

    def do_run(self, *, argv: list[str], timeout: float, body: bytes) -> tuple[dict[str, Any], bytes]:
        """Runs a program in the workspace."""

        def execute() -> None:
            try:
                os.execvp(argv[0], argv)
            except OSError as error:
                os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
                os._exit(127)

        return self._supervise(execute, timeout)

    def do_python(self, *, timeout: float, body: bytes) -> tuple[dict[str, Any], bytes]:
        """Runs Python source in a fork of this process: an interpreter that needs no start."""
        answer, output = self._supervise(lambda: _interpret(body.decode("utf-8", "replace")), timeout)
        answer["left_files"] = any(os.listdir(os.path.join(self.box, name)) for name in ("work", "tmp", "shm"))
        return answer, output

    def do_write(self, *, path: str, body: bytes) -> tuple[dict[str, Any], bytes]:
        """Writes a file of the workspace, making its folders."""
        target = self._inside(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(target, flags, 0o644), "wb") as file:
            file.write(body)
        return {}, b""

    def do_read(self, *, path: str, body: bytes) -> tuple[dict[str, Any], bytes]:
        """Reads a regular file of the workspace; pipes and devices that a program left there are refused."""
        # O_NONBLOCK: opening a named pipe would otherwise stop this server for good.
        descriptor = os.open(self._inside(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_size > self.config["disk_bytes"]:
                raise OSError(errno.EFBIG, "larger than the workspace")  # a sparse file
            return {}, file.read()

    def _inside(self, path: str) -> str:
        target = os.path.realpath(os.path.join(self.workspace, path))
        if not target.startswith(self.workspace + os.sep):
            raise PermissionError(errno.EACCES, "outside the workspace")
        return target

    def _supervise(self, body: Callable[[], None], timeout: float) -> tuple[dict[str, Any], bytes]:
        """Forks, runs `body` under the limits, collects its output, and leaves nothing running."""
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        child = os.fork()
        if child == 0:
            self._become_child(out_end, err_end, timeout, body)
        os.close(out_end)
        os.close(err_end)
        output = _Output(out, err, self.config["output_bytes"])
        deadline = time.monotonic() + timeout
        status: int | None = None
        reason = ""
        nap = 0.0002
        next_check = time.monotonic() + _TICK_SECONDS
        while status is None:
            now = time.monotonic()
            if now >= deadline:
                reason = "timeout"
                break
            if now >= next_check:
                next_check = now + _TICK_SECONDS
                if self.isolated and _resident_bytes() > self.config["memory_bytes"]:
                    reason = "memory"
                    break
            if output.open_pipes:
                output.collect(min(_TICK_SECONDS, deadline - now))
            else:
                # Its pipes are closed: it is about to end, or works on in silence.
                time.sleep(nap)
                nap = min(2 * nap, 0.01)
            finished, code = os.waitpid(child, os.WNOHANG)
            if finished:
                status = code
        ended = self._kill_everything(child)
        status = ended.get(child, signal.SIGKILL) if status is None else status
        output.finish()
        answer = {
            "exit_code": os.waitstatus_to_exitcode(status),
            "timed_out": reason == "timeout",
            "out_of_memory": reason == "memory",
            "truncated": output.truncated,
            "stdout_bytes": len(output.stdout),
        }
        return answer, bytes(output.stdout + output.stderr)

    def _become_child(self, out: int, err: int, timeout: float, body: Callable[[], None]) -> None:
        """In the child: its own session, its own standard streams, its limits; never returns."""
        try:
            os.setsid()
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.closerange(3, 256)  # above all the pipes to the host
            for number in (signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            for kind, value in self._resource_limits(timeout).items():
                resource.setrlimit(kind, (value, value))
            body()
        except BaseException:  # noqa: BLE001 - the child must end here, whatever happened
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)

    def _resource_limits(self, timeout: float) -> dict[int, int]:
        # A user namespace counts its processes from zero, this server included; without one the user's others count.
        others = 1 if self.isolated else _processes_of_this_user()
        limits = {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_CPU: int(timeout) + 2,
            resource.RLIMIT_FSIZE: self.config["disk_bytes"],
            resource.RLIMIT_NOFILE: 256,
            resource.RLIMIT_NPROC: others + self.config["processes"],
        }
        if sys.platform == "linux":
            limits[resource.RLIMIT_AS] = self.config["memory_bytes"]
        return limits

    def _kill_everything(self, child: int) -> dict[int, int]:
        """Kills what the call has started and reaps it; the status of each by process id."""
        ended: dict[int, int] = {}
        while True:
            targets = [-1] if self.isolated else [-child, *_descendants()]
            for target in targets:
                try:
                    os.kill(target, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
            try:
                process, status = os.waitpid(-1, 0)
            except ChildProcessError:
                return ended
            ended[process] = status

    def _receive(self) -> tuple[dict[str, Any], bytes] | None:
        lengths = _read_exactly(self.requests, _LENGTHS.size)
        if lengths is None:
            return None
        head_length, body_length = _LENGTHS.unpack(lengths)
        head, body = _read_exactly(self.requests, head_length), _read_exactly(self.requests, body_length)
        return None if head is None or body is None else (json.loads(head), body)

    def _reply(self, head: dict[str, Any], body: bytes) -> None:
        encoded = json.dumps(head).encode()
        data = memoryview(_LENGTHS.pack(len(encoded), len(body)) + encoded + body)
        while data:
            data = data[os.write(self.replies, data) :]


class _Output:
    """Collects two pipes up to a common cap; what comes beyond it is read and thrown away."""

    def __init__(self, out: int, err: int, cap: int) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.open_pipes = {out: self.stdout, err: self.stderr}
        self.room = cap
        self.truncated = False
        self._poll = select.poll()
        for descriptor in self.open_pipes:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)

    def collect(self, seconds: float) -> None:
        """Waits up to `seconds` for output and takes one piece of each pipe that has some."""
        for descriptor, _ in self._poll.poll(max(0.0, seconds) * 1000):
            try:
                piece = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                continue
            if not piece:
                self._close(descriptor)
                continue
            self.truncated |= len(piece) > self.room
            self.open_pipes[descriptor] += piece[: self.room]
            self.room -= min(len(piece), self.room)

    def finish(self) -> None:
        """Takes what is still in the pipes once every writer is dead, and closes them."""
        while self.open_pipes:
            before = len(self.open_pipes)
            ready = self._poll.poll(0)
            self.collect(0)
            if not ready and len(self.open_pipes) == before:
                for descriptor in list(self.open_pipes):
                    self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        os.close(descriptor)
        del self.open_pipes[descriptor]


class _Printed(io.TextIOWrapper):
    """Standard output that remembers whether anything was written."""

    used = False

    def write(self, text: str, /) -> int:
        self.used = self.used or bool(text)
        return super().write(text)


def _interpret(source: str) -> None:
    """Runs `source` as a fresh `__main__`; a last expression shows its value when nothing else was printed."""
    import builtins

    random.seed(0)  # forks would otherwise share a state that differs from boot to boot
    stdout = _Printed(io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="replace", write_through=False)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = stdout
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="replace")
    sys.argv = ["python"]
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)  # what the site module would have added
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    status = 0
    try:
        tree = ast.parse(source, "<python>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<python>", "exec"), module.__dict__)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<python>", "eval"), module.__dict__)
            if value is not None and not stdout.used:
                print(repr(value))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if not isinstance(stop.code, (int, type(None))):
            print(stop.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 - whatever the program raised is its result
        status = 1
        print("".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1], file=sys.stderr)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)


def _protect_this_process() -> None:
    """First in line when memory runs out, heir of orphans, closed to /proc readers and debuggers of the same user."""
    if sys.platform != "linux":
        return
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    set_dumpable, set_child_subreaper = 4, 36
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((set_child_subreaper, 1), (set_dumpable, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def _resident_bytes() -> int:
    """Private memory of all processes beside this one; one alone is already bounded by its address space."""
    total, others = 0, [process for process in _process_ids() if process != os.getpid()]
    if len(others) < 2:
        return 0
    for process in others:
        try:
            with open(f"/proc/{process}/statm") as file:
                fields = file.read().split()
        except OSError:
            continue  # it has ended meanwhile
        total += int(fields[1]) - int(fields[2])
    return total * resource.getpagesize()


def _processes_of_this_user() -> int:
    count = 0
    for process in _process_ids():
        try:
            # Threads count towards RLIMIT_NPROC like processes.
            if os.stat(f"/proc/{process}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{process}/task"))
        except OSError:
            continue  # it has ended meanwhile
    return count


def _descendants() -> list[int]:
    parents: dict[int, int] = {}
    for process in _process_ids():
        try:
            with open(f"/proc/{process}/stat") as file:
                parents[process] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def _read_exactly(descriptor: int, length: int) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        piece = os.read(descriptor, min(length - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


if __name__ == "__main__":
    Server(json.loads(sys.argv[1])).serve()
