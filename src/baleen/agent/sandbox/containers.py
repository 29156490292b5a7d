"""The tiers `docker` and `podman`: the same guest in a container, over the client's standard streams.

No network (loopback inside works), a read-only image, bounded tmpfs folders, no capability, no new privileges, an
unprivileged user, the engine's own seccomp profile, and its memory, process and processor limits. The image needs a
`python3` of version 3.11 or later; `BALEEN_SANDBOX_IMAGE` names another than the default.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Literal

from baleen.agent.sandbox.launch import NOBODY, Launch, base_environment
from baleen.agent.sandbox.limits import Limits

DEFAULT_IMAGE = "python:3.11-slim"
_BOX = "/box"
_DEFAULT_SHARES = 1024


def container_launch(engine: Literal["docker", "podman"], limits: Limits, readable: Sequence[str]) -> Launch | None:
    """The way to start in a container; None when the engine's client is not installed."""
    client = shutil.which(engine)
    if client is None:
        return None
    folder = f"rw,nosuid,nodev,exec,uid={NOBODY},gid={NOBODY},mode=0700,size={limits.disk_bytes}"
    memory = limits.memory_bytes + limits.disk_bytes
    arguments = [client, "run", "--rm", "--interactive", "--network", "none", "--read-only"]
    arguments += ["--tmpfs", f"{_BOX}:{folder}", "--tmpfs", f"/tmp:{folder}", "--workdir", _BOX]
    arguments += ["--user", f"{NOBODY}:{NOBODY}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    arguments += ["--memory", str(memory), "--memory-swap", str(memory), "--pids-limit", str(limits.processes + 1)]
    arguments += ["--cpu-shares", str(_DEFAULT_SHARES * limits.cpu_weight // 100), "--hostname", "sandbox"]
    for name, value in (base_environment(_BOX, [])).items():
        arguments += ["--env", f"{name}={value}"]
    for path in readable:
        arguments += ["--volume", f"{path}:{path}:ro"]
    image = os.environ.get("BALEEN_SANDBOX_IMAGE", DEFAULT_IMAGE)
    # The client itself needs the host's environment: where its daemon is, and its credentials for images.
    return Launch(engine, (*arguments, image, "python3"), dict(os.environ), _BOX, isolated=True, can_be_grouped=False)
