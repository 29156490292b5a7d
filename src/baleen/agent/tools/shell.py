"""`bash(command)`: one shell that stays, so that its folder, variables and jobs are there at the next call.

The shell reads commands from a pipe. Each is evaluated and followed by a mark with its exit code and the folder, on a
descriptor of its own, so that the end of a command is seen whatever it prints. A command that does not end in time
takes the shell with it; the next one is a new shell in the same folder, and the model is told.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from baleen.agent.environment import InfrastructureError
from baleen.agent.sandbox import Process, Sandbox, SandboxError
from baleen.agent.tools.faults import sandbox_faults
from baleen.agent.tools.terminal_text import middle_cut, plain_text

_MOST_OUTPUT_BYTES = 32 << 20
"""A command that prints more is stopped: it would keep a processor busy until its time is over."""
_TICK_SECONDS = 0.5
_LONGEST_MARK = 8 << 10
"""Bytes of the mark behind a command: a folder's name can be 4 KiB long."""
_ENVIRONMENT = {"TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat"}


@dataclass
class _Printed:
    """A command's output: its beginning and its end, and what the mark behind it said."""

    keep: int
    data: bytearray
    left_out: int = 0
    total: int = 0
    exit_code: int | None = None

    def add(self, piece: bytes) -> None:
        self.data += piece
        self.total += len(piece)

    def trim(self) -> None:
        """Leaves the middle of a long output out. The end that stays may be the beginning of the mark."""
        head, tail = 2 * self.keep, max(2 * self.keep, _LONGEST_MARK)
        if len(self.data) > 2 * (head + tail):
            self.left_out += len(self.data) - head - tail
            self.data[head:-tail] = b""


class Shell:
    """A shell in a started sandbox, which belongs to the caller; one command at a time.

    `timeout`: seconds for a command that names none; `longest`: the most it may name. Of a longer output the first and
    the last part, `output_characters` together, are shown.
    """

    def __init__(
        self, sandbox: Sandbox, *, timeout: float = 30.0, longest: float = 600.0, output_characters: int = 16_000
    ) -> None:
        self._sandbox, self._timeout, self._longest = sandbox, timeout, longest
        self._output_characters = output_characters
        self._process: Process | None = None
        self._folder = ""
        self._one_at_a_time = asyncio.Lock()

    async def bash(
        self,
        command: Annotated[str, "one or more lines of bash; input is empty"],
        timeout: Annotated[float, "seconds; 0 for the default"] = 0,
    ) -> str:
        """Runs a command in a shell that keeps its folder and variables between calls."""
        if "\0" in command:
            raise ValueError("command holds a zero byte")
        seconds = min(timeout if timeout > 0 else self._timeout, self._longest)
        async with self._one_at_a_time:
            try:
                with sandbox_faults():
                    return await self._ran(command, seconds)
            except BaseException:
                await self._drop()  # cancelled, or broken: what it prints now must not meet the next command
                raise

    async def close(self) -> None:
        """Ends the shell and its jobs; a later call starts a new one in the same folder. May be called twice."""
        await self._drop()

    async def _ran(self, command: str, seconds: float) -> str:
        process = await self._started()
        token = secrets.token_hex(8)
        # xtrace would show the mark's own command: that group's stderr goes nowhere. The empty line is for bash, which
        # leaves out a token after a command that it could not parse.
        script = (
            f"eval {shlex.quote(command)} </dev/null 9>&-\n\n"
            f'{{ builtin printf \'\\036%s:%s:%s\\036\' {token} "$?" "$PWD" >&9; }} 2>/dev/null\n'
        )
        printed = _Printed(self._output_characters, bytearray())
        reason = await self._until_marked(process, script.encode("utf-8", "replace"), token, printed, seconds)
        if reason:
            await self._drop()
            folder = self._folder.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            place = f" in {folder}" if folder else ""
            reason = f"error: {reason}; the next command gets a new shell{place}, variables and jobs are lost"
        elif printed.exit_code:
            reason = f"[exit code {printed.exit_code}]"
        text = plain_text(printed.data.decode("utf-8", "replace")).rstrip("\n")
        shown = middle_cut(text, self._output_characters, printed.left_out)
        return "\n".join(part for part in (shown, reason) if part) or "(no output)"

    async def _until_marked(
        self, process: Process, script: bytes, token: str, printed: _Printed, seconds: float
    ) -> str:
        """Sends the command and collects its output; why the shell is of no more use, or "" when it is."""
        mark = re.compile(rb"\x1e%s:(\d+):([^\x1e]*)\x1e" % token.encode())
        deadline = time.monotonic() + seconds
        with suppress(BrokenPipeError):  # its end is seen below
            await process.send(script)
        while (left := deadline - time.monotonic()) > 0:
            try:
                piece = await process.receive(min(left, _TICK_SECONDS))
            except TimeoutError:
                if process.exit_code is None:
                    continue
                piece = b""  # a job that it left behind keeps the pipe open
            if not piece:
                return await self._ending(process)
            printed.add(piece)
            if found := mark.search(printed.data):
                printed.exit_code, self._folder = int(found[1]), found[2].decode("utf-8", "surrogateescape")
                del printed.data[found.start() : found.end()]
                return ""
            printed.trim()
            if printed.total > _MOST_OUTPUT_BYTES:
                return f"stopped after {_MOST_OUTPUT_BYTES >> 20} MiB of output"
        return f"timed out after {seconds:g} s"

    async def _started(self) -> Process:
        if self._process is None:
            argv = ["bash", "--noprofile", "--norc"]
            self._process = await self._sandbox.start(argv, environment=_ENVIRONMENT)
            script = "exec 9>&1\n"
            if self._folder:
                folder = shlex.quote(self._folder)
                gone = "[the folder %s cannot be entered; this shell is in %s]\\n"
                script += f"cd -- {folder} 2>/dev/null || builtin printf '{gone}' {folder} \"$PWD\"\n"
            await self._process.send(script.encode("utf-8", "surrogateescape"))
        return self._process

    async def _ending(self, process: Process) -> str:
        try:
            code = await process.wait(2.0)
        except TimeoutError:
            return "the shell closed its output"
        if code == 127 and not self._folder:
            raise InfrastructureError("there is no bash in the sandbox; install it where the sandbox gets its /usr")
        return f"the shell ended with exit code {code}"

    async def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(SandboxError):  # the sandbox is gone, and the shell with it
                await process.kill()
