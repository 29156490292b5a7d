"""Our sandbox as a sandbox environment of `inspect_ai`: importing this file registers the provider `baleen`.

    @task
    def arithmetic() -> Task:
        return Task(..., sandbox="baleen")

One sandbox per sample, relative paths are the workspace's. There is one user, so `exec(user=...)` is refused for any
other; commands end with all they started.
Source: `inspect_ai.util.SandboxEnvironment` (0.3); `inspect_ai.util._sandbox.self_check` is its suite of checks.
"""

from __future__ import annotations

import errno
import os
from typing import Literal, overload

from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentConfigType,
    SandboxEnvironmentLimits,
    SandboxUserUnsupportedError,
    sandboxenv,
)

from baleen.agent.sandbox import Limits, Sandbox

_USER = "nobody"
_DEFAULT_TIMEOUT = 24 * 3600
_FIRST_SIGNAL_CODE = 128
_CANNOT_EXECUTE = 126


@sandboxenv(name="baleen")
class BaleenSandboxEnvironment(SandboxEnvironment):
    """One sandbox of ours behind inspect_ai's interface. `sandbox` must have been entered."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self.sandbox = sandbox

    @classmethod
    async def sample_init(
        cls, task_name: str, config: SandboxEnvironmentConfigType | None, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        """A fresh sandbox for a sample."""
        return {"default": cls(await Sandbox(default_limits()).__aenter__())}

    @classmethod
    async def sample_cleanup(
        cls,
        task_name: str,
        config: SandboxEnvironmentConfigType | None,
        environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        """Ends a sample's sandboxes."""
        for environment in environments.values():
            await environment.as_type(BaleenSandboxEnvironment).sandbox.close()

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Runs a command. Raises `TimeoutError`, `PermissionError`, `OutputLimitExceededError`."""
        if user not in (None, _USER):
            raise SandboxUserUnsupportedError(f"this sandbox has no user {user!r}, only {_USER!r}")
        given = input.encode() if isinstance(input, str) else input or b""
        seconds = _DEFAULT_TIMEOUT if timeout is None else timeout
        result = await self.sandbox.run(cmd, timeout=seconds, input=given, cwd=cwd, environment=env)
        if result.timed_out:
            raise TimeoutError(f"{cmd[0]} did not end within {seconds} s")
        if result.truncated:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, result.stdout)
        if result.exit_code == _CANNOT_EXECUTE and os.strerror(errno.EACCES) in result.stderr:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), cmd[0])
        code = result.exit_code if result.exit_code >= 0 else _FIRST_SIGNAL_CODE - result.exit_code
        return ExecResult(code == 0, code, result.stdout, result.stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """Writes a file, making its folders. Raises `OSError`."""
        await self.sandbox.write(file, contents.encode() if isinstance(contents, str) else contents)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """A file. Raises `OSError`, `UnicodeDecodeError`, `OutputLimitExceededError`."""
        try:
            content = await self.sandbox.read(file)
        except PermissionError:
            # Folders of the system are refused like all that is not the workspace's; here they are told apart.
            if (await self.sandbox.run(["test", "-d", file])).exit_code == 0:
                raise IsADirectoryError(errno.EISDIR, "Is a directory", file) from None
            raise
        if len(content) > SandboxEnvironmentLimits.MAX_READ_FILE_SIZE:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
        return content.decode() if text else content


def default_limits() -> Limits:
    """As much disk and output as inspect_ai lets a file and a command have."""
    return Limits(
        memory_bytes=1 << 30,
        disk_bytes=2 * SandboxEnvironmentLimits.MAX_READ_FILE_SIZE,
        output_bytes=SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE,
    )
