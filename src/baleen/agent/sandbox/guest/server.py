"""The server of one sandbox: one loop over the host's messages and the programs that run.

In the tiers with a process namespace it is process 1: what it runs can neither kill it nor read its memory or pipes.
When a program ends, everything that it started is killed, however it detached itself; other programs go on.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import sys
import time
from _signal import SIG_IGN, SIGCHLD, SIGINT, SIGKILL, set_wakeup_fd, signal

from baleen.agent.sandbox.guest import processes
from baleen.agent.sandbox.guest.files import Workspace
from baleen.agent.sandbox.guest.frames import PIECE, Inbox, packed
from baleen.agent.sandbox.guest.interpreter import interpret, preload
from baleen.agent.sandbox.guest.jobs import Job, Pipes, Receiver
from baleen.agent.sandbox.guest.programs import become_program, execution, resource_limits
from baleen.agent.sandbox.guest.walls import SystemCallFilter, give_up_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Answer = tuple[dict[str, Any], bytes] | None

_TICK_SECONDS = 0.05
_IDLE_TICK_SECONDS = 0.5
_LONGEST_INPUT = 16 << 20
_NICE_AFTER_SECONDS, _NICE = 1.0, 15
_INODES_PER_BYTE = 1 / 4096


class Server:
    """Serves the host until it closes the pipe."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.isolated: bool = config["isolated"]
        self.workspace = Workspace(
            os.path.realpath(config["box"]), config["disk_bytes"], config["bound"], config["linked"]
        )
        self.jobs: dict[int, Job] = {}
        self.most_files = max(1000, int(config["disk_bytes"] * _INODES_PER_BYTE))
        self._files_before = 0
        self._next_check = 0.0
        os.chdir(self.workspace.folder)
        os.environ["PWD"] = self.workspace.folder
        self.requests, self.replies = os.dup(0), os.dup(1)
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(null, descriptor)
        self._woken, wakes = os.pipe()
        for descriptor in (self._woken, wakes):
            os.set_blocking(descriptor, False)
        signal(SIGINT, SIG_IGN)
        signal(SIGCHLD, lambda *_: None)
        set_wakeup_fd(wakes)
        processes.protect_server()
        self.filters = [SystemCallFilter(program) for program in config["filters"]]
        self.walls: dict[str, Any] | None = config["walls"]
        if self.walls is not None:
            give_up_files([*self.walls["readable"], "/proc"], self.walls["writable"], alone=False)

    def serve(self) -> None:
        """Answers the host until it closes the pipe; programs run meanwhile, and none is left at the end."""
        try:
            self._serve()
        finally:
            for job in self.jobs.values():
                _kill(job.main)
            processes.sweep(set(), self.isolated)

    def _serve(self) -> None:
        self._send({"ready": True, "python": sys.version.split()[0]})
        waiting = select.poll()
        waiting.register(self.requests, select.POLLIN)
        preload(lambda: bool(waiting.poll(0)))
        inbox = Inbox()
        while True:
            handlers: dict[int, Callable[[], None]] = {}
            poll = select.poll()
            for job in self.jobs.values():
                for descriptor, events, handler in job.interests():
                    poll.register(descriptor, events)
                    handlers[descriptor] = handler
            poll.register(self.requests, select.POLLIN)
            poll.register(self._woken, select.POLLIN)
            for descriptor, _ in poll.poll(self._patience()):
                if descriptor == self.requests:
                    data = os.read(self.requests, PIECE)
                    if not data:
                        return
                    for head, body in inbox.frames(data):
                        self._serve_one(head, body)
                elif descriptor == self._woken:
                    os.read(self._woken, PIECE)
                    self._note_ended(processes.reap())
                else:
                    handlers[descriptor]()
            self._watch()

    def _serve_one(self, head: dict[str, Any], body: bytes) -> None:
        call = head.pop("call")
        try:
            answer = getattr(self, "do_" + head.pop("operation"))(call=call, body=body, **head)
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO, "message": error.strerror or str(error)}, b""
        except (ValueError, MemoryError, RecursionError) as error:
            answer = {"errno": errno.EINVAL, "message": str(error) or type(error).__name__}, b""
        if answer is not None:
            self._send({"call": call, **answer[0]}, answer[1])

    def _send(self, head: dict[str, Any], body: bytes = b"") -> None:
        data = memoryview(packed(head, body))
        while data:
            data = data[os.write(self.replies, data) :]

    # --- programs ---

    def do_run(
        self, *, call: int, argv: list[str], timeout: float, cwd: str, environment: dict[str, str], body: bytes
    ) -> Answer:
        """Runs a program to its end."""
        self._start(call, execution(argv, environment), timeout, cwd, body)
        return None

    def do_python(self, *, call: int, timeout: float, tools: list[str] | None, body: bytes) -> Answer:
        """Runs Python source in a fork of this process to its end."""
        if not gc.get_freeze_count():
            preload(lambda: False)
            gc.freeze()  # what is here now is shared with every fork: no collection there should touch it
        source = body.decode("utf-8", "replace")

        def forked() -> None:
            self.jobs.clear()
            self.workspace.forget()
            interpret(source, tools)

        self._start(call, forked, timeout, "", b"", tools is not None)
        return None

    def do_start(self, *, call: int, argv: list[str], cwd: str, environment: dict[str, str], body: bytes) -> Answer:
        """Starts a program that stays; it is known by the number of this call."""
        self._start(call, execution(argv, environment), None, cwd, b"")
        return {}, b""

    def do_send(self, *, call: int, process: int, last: bool, body: bytes) -> Answer:
        """Input for a process."""
        job = self.jobs.get(process)
        if job is None or job.input is None or not job.input.open:
            raise BrokenPipeError(errno.EPIPE, "the process takes no input any more")
        if len(job.input.pending) + len(body) > _LONGEST_INPUT:
            raise BlockingIOError(errno.EAGAIN, "the process does not read its input")
        job.input.pending += body
        job.input.ends = last
        job.input.flush()
        return {}, b""

    def do_receive(self, *, call: int, process: int, timeout: float, body: bytes) -> Answer:
        """The next output of a process, when there is some."""
        job = self.jobs.get(process)
        if job is None:
            return {"ended": True}, b""
        if job.receiver is not None:
            raise OSError(errno.EBUSY, "somebody else waits for this output")
        job.receiver = Receiver(call, timeout)
        return None

    def do_kill(self, *, call: int, process: int, body: bytes) -> Answer:
        """Ends a process or a call and all it started."""
        job = self.jobs.get(process)
        if job is not None:
            self._end(job, "stopped")
        return {}, b""

    def do_tool_answer(self, *, call: int, body: bytes) -> Answer:
        """The host's answer to a program that has called a tool."""
        job = self.jobs.get(call)
        if job is not None and job.channel is not None:
            job.channel.answer(body)
        return None

    # --- files ---

    def do_write(self, *, call: int, path: str, body: bytes) -> Answer:
        """Writes a file, making its folders."""
        self.workspace.write(path, body)
        return {}, b""

    def do_read(self, *, call: int, path: str, most: int, body: bytes) -> Answer:
        """Reads a regular file of at most `most` bytes."""
        return {}, self.workspace.read(path, most)

    def do_list(self, *, call: int, path: str, body: bytes) -> Answer:
        """The names in a folder."""
        return {}, "\0".join(self.workspace.names(path)).encode("utf-8", "surrogateescape")

    def do_pack(self, *, call: int, path: str, body: bytes) -> Answer:
        """All below a folder: a JSON list of its entries, then the contents one after another."""
        import json

        entries = self.workspace.pack(path)
        index = json.dumps([(*entry[:4], len(entry[4])) for entry in entries]).encode()
        if len(index) > self.config["index_bytes"]:
            raise OSError(errno.EFBIG, "the names in the folder are too long together")
        return {"index": len(index)}, index + b"".join(entry[4] for entry in entries)

    def do_unpack(self, *, call: int, path: str, entries: list[Any], body: bytes) -> Answer:
        """Writes what the host has packed."""
        self.workspace.unpack(path, entries)
        return {}, b""

    def do_snapshot(self, *, call: int, body: bytes) -> Answer:
        """Remembers the workspace."""
        self.workspace.snapshot()
        return {}, b""

    def do_reset(self, *, call: int, body: bytes) -> Answer:
        """Ends all programs; the workspace becomes what it was at the snapshot."""
        for job in list(self.jobs.values()):
            self._end(job, "stopped")
        self._note_ended(processes.sweep(set(), self.isolated))
        self.workspace.reset()
        return {}, b""

    # --- life and death ---

    def _start(
        self, call: int, body: Callable[[], None], timeout: float | None, cwd: str, given: bytes, tools: bool = False
    ) -> None:
        folder = os.path.join(self.workspace.folder, cwd)
        forward = (lambda message: self._send({"call": call, "event": "tool"}, message)) if tools else None
        pipes = Pipes(joined=timeout is None, with_input=timeout is None or bool(given), channel=forward)
        limits = resource_limits(self.config, timeout)
        try:
            main = processes.fork()
        except OSError:
            pipes.close()
            raise
        if main == 0:
            become_program(self.config, self.filters, pipes, limits, folder, body)
        pipes.close_inner()
        job = Job(call, main, pipes, timeout, self.config["output_bytes"])
        self.jobs[call] = job
        self._next_check = min(self._next_check, job.began + _TICK_SECONDS)
        if job.input is not None and given:
            job.input.pending += given
            job.input.ends = True
            job.input.flush()

    def _note_ended(self, ended: dict[int, int]) -> None:
        """Wait statuses of children: a job whose main process is among them is over."""
        over = [job for job in self.jobs.values() if job.main in ended and job.status is None]
        for job in over:
            job.status = ended[job.main]
        for job in over:
            self._end(job, "")

    def _end(self, job: Job, reason: str) -> None:
        """Kills what is left of a job, tells the host, and forgets it (a process once its output was taken).

        Nothing happens where the end of another job has brought this one's: the killing finds all who are over.
        """
        if self.jobs.get(job.number) is not job:
            return
        job.reason = reason
        if job.status is None:
            _kill(job.main)
        wanted = {other.main for other in self.jobs.values() if other is not job and other.status is None}
        ended = processes.sweep(wanted, self.isolated)
        if job.status is None:
            job.status = ended.pop(job.main, SIGKILL)
        if job.stays:
            self._send({"call": job.number, "event": "ended", "exit_code": os.waitstatus_to_exitcode(job.status)})
            if job.reason:
                job.close()
            if job.reason and job.receiver is None:
                del self.jobs[job.number]
        else:
            job.drain()
            job.close()
            del self.jobs[job.number]
            self._answer_call(job)
        self._note_ended(ended)

    def _answer_call(self, job: Job) -> None:
        head = {
            "call": job.number,
            "exit_code": os.waitstatus_to_exitcode(job.status or 0),
            "timed_out": job.reason == "timeout",
            "out_of_memory": job.reason == "memory",
            "too_many_files": job.reason == "files",
            "truncated": job.truncated,
            "left_files": self.workspace.touched(),
            "stdout_bytes": len(job.texts[0]),
        }
        self._send(head, bytes(job.texts[0] + job.texts[1]))

    def _patience(self) -> float | None:
        """Milliseconds until something is due; None when nothing will be."""
        dues = [job.deadline for job in self.jobs.values() if job.deadline is not None]
        dues += [job.receiver.deadline for job in self.jobs.values() if job.receiver is not None]
        if any(job.status is None for job in self.jobs.values()):
            dues.append(self._next_check)
        return None if not dues else max(0.0, min(dues) - time.monotonic()) * 1000 + 0.1

    def _watch(self) -> None:
        """Ends what is overdue or takes too much, and hands output to those who wait for it."""
        now = time.monotonic()
        for job in list(self.jobs.values()):
            if job.status is None and job.deadline is not None and now >= job.deadline:
                self._end(job, "timeout")
            elif job.stays:
                self._hand_over(job, now)
        if now >= self._next_check and any(job.status is None for job in self.jobs.values()):
            calls = any(not job.stays for job in self.jobs.values())
            urgent = calls and not self.config["counted"]  # else a control group holds meanwhile
            self._next_check = now + (_TICK_SECONDS if urgent else _IDLE_TICK_SECONDS)
            self._check_memory()
            self._check_files()
            self._yield_to_others(now)

    def _hand_over(self, job: Job, now: float) -> None:
        receiver = job.receiver
        if receiver is not None and job.texts[0]:
            answer, data = {}, bytes(job.texts[0])
            job.texts[0].clear()
        elif receiver is not None and job.output_ended:
            answer, data = {"ended": True}, b""
        elif receiver is not None and now >= receiver.deadline:
            answer, data = {"waited": True}, b""
        else:
            return
        job.receiver = None
        self._send({"call": receiver.call, **answer}, data)
        if job.output_ended and job.status is not None and not job.texts[0]:
            job.close()
            del self.jobs[job.number]

    def _running(self) -> dict[int, Job]:
        return {job.main: job for job in self.jobs.values() if job.status is None}

    def _check_memory(self) -> None:
        running = self._running()
        taken = processes.resident_bytes(running)
        if sum(taken.values()) > self.config["memory_bytes"]:
            self._end(running[max(taken, key=lambda main: taken[main])], "memory")

    def _check_files(self) -> None:
        """Empty files take memory that neither the disk's bound nor a process's counts."""
        if not self.isolated:
            return  # the file system is the host's, and so is the number of its files
        status = os.statvfs(self.workspace.box)
        files, before = status.f_files - status.f_ffree, self._files_before
        self._files_before = files
        if files > self.most_files and files > before:
            for job in list(self._running().values()):
                self._end(job, "files")

    def _yield_to_others(self, now: float) -> None:
        """What runs for long lets what is short go first, where no control group shares out the processor."""
        if self.config["shared"]:
            return
        late = {job.main: job for job in self._running().values() if not job.yielded}
        late = {main: job for main, job in late.items() if now - job.began > _NICE_AFTER_SECONDS}
        if not late:
            return
        for process in processes.families(late, processes.parents()):
            try:
                os.setpriority(os.PRIO_PROCESS, process, _NICE)
            except OSError:
                continue  # it has ended meanwhile
        for job in late.values():
            job.yielded = True


def _kill(process: int) -> None:
    try:
        os.kill(process, SIGKILL)
    except ProcessLookupError:
        return
