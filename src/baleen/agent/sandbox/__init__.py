"""A place where code that nobody has read may run.

    async with Sandbox(Limits(memory_bytes=256 << 20)) as sandbox:
        result = await sandbox.run(["python3", "-c", "print(1)"], timeout=5.0)

A small server (`guest/`) is started once inside the isolation and answers over a socket, so that a call costs a few
milliseconds at most and the workspace lives as long as the sandbox. How strong the walls are is the tier's matter:
`bubblewrap.py`, `weak.py` (landlock and none), `containers.py`, chosen in `tiers.py`; `seccomp.py` lists the system
calls that stay outside, `cgroup.py` counts what a whole sandbox takes. The host's end is `session.py` (what is done),
`process.py` (what stays), `pool.py` (used again), over `connection.py` and `reactor.py`.
"""

from baleen.agent.sandbox.cgroup import NoControlGroupWarning
from baleen.agent.sandbox.launch import Tier
from baleen.agent.sandbox.limits import Limits, RunResult, SandboxError, SandboxUnavailable, WeakSandboxWarning
from baleen.agent.sandbox.pool import SandboxPool
from baleen.agent.sandbox.process import Process
from baleen.agent.sandbox.session import Sandbox

__all__ = [
    "Limits",
    "NoControlGroupWarning",
    "Process",
    "RunResult",
    "Sandbox",
    "SandboxError",
    "SandboxPool",
    "SandboxUnavailable",
    "Tier",
    "WeakSandboxWarning",
]
