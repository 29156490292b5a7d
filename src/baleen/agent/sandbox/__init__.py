"""A place where code that nobody has read may run.

    async with Sandbox(Limits(memory_bytes=256 << 20)) as sandbox:
        result = await sandbox.run(["python3", "-c", "print(1)"], timeout=5.0)

A small server (`guest.py`) is started once inside the isolation and answers over two pipes, so that a call costs a few
milliseconds at most and the workspace lives as long as the sandbox. `launch.py` builds the walls, `seccomp.py` the list
of system calls that stay outside, `session.py` is the host's end.
"""

from baleen.agent.sandbox.session import (
    Limits,
    RunResult,
    Sandbox,
    SandboxError,
    SandboxUnavailable,
    WeakSandboxWarning,
)

__all__ = ["Limits", "RunResult", "Sandbox", "SandboxError", "SandboxUnavailable", "WeakSandboxWarning"]
