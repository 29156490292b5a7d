"""What this machine has, what is missing, and how to get it.

Each finding is looked up for real: the sandbox is started, a package is imported. Only Python, torch and a working
sandbox are needed; the rest makes things faster or prettier.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from textwrap import shorten
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from baleen.agent.sandbox import Tier

NEEDED_MEMORY_GIB = 6


@dataclass(frozen=True)
class Finding:
    """One thing looked for. `remedy` says how to get it, or what its absence means."""

    name: str
    value: str
    fine: bool = True
    optional: bool = False
    remedy: str = ""


def examine() -> list[Finding]:
    """Everything that `baleen` makes use of, in the order of its importance."""
    return [_python(), *_torch(), _cores(), _memory(), *_sandbox(), _browser(), _corpus()]


def _python() -> Finding:
    fine = sys.version_info >= (3, 11)
    remedy = "" if fine else "install Python 3.11 or later"
    return Finding("python", f"{platform.python_version()} at {sys.executable}", fine, remedy=remedy)


def _torch() -> list[Finding]:
    if find_spec("torch") is None:
        return [Finding("torch", "not installed", fine=False, remedy="make setup")]
    import torch

    found = [Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        found.append(Finding("gpu", torch.cuda.get_device_name(0)))
    else:
        remedy = "not needed: the recipes micro and nano are made for a CPU"
        found.append(Finding("gpu", "none", fine=False, optional=True, remedy=remedy))
    return found


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", str(usable))


def _memory() -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    fine = gib >= NEEDED_MEMORY_GIB
    remedy = "" if fine else f"the recipe nano wants {NEEDED_MEMORY_GIB} GiB; micro takes less"
    return Finding("memory", f"{gib:.1f} GiB", fine, optional=True, remedy=remedy)


def _sandbox() -> list[Finding]:
    """The tier that is used here, the others that could be, and whether the kernel counts for a whole sandbox."""
    from baleen.agent.sandbox.cgroup import CONTROLLERS, available_controllers

    found = {tier: _tier(tier) for tier in ("bubblewrap", "landlock", "docker", "podman")}
    hint = "apt-get install bubblewrap (or your system's package of that name), and allow user namespaces"
    used = next((tier for tier in ("bubblewrap", "landlock") if found[tier] == ""), None)
    others = [f"{tier} ({reason})" if reason else tier for tier, reason in found.items() if tier != used]
    if used is None:
        value = f"none: {found['bubblewrap']}; {found['landlock']}"
        findings = [Finding("sandbox", value, fine=False, remedy=hint)]
    else:
        findings = [Finding("sandbox", used, remedy="" if used == "bubblewrap" else hint)]
    findings.append(Finding("other tiers", "; ".join(others), optional=True))
    counted = available_controllers()
    missing = [name for name in CONTROLLERS if name not in counted]
    value = ", ".join(f"{name} (version {version})" for name, version in counted.items()) or "none"
    remedy = f"limits of a whole sandbox need root or a delegated group: {', '.join(missing)}" if missing else ""
    return [*findings, Finding("cgroups", value, fine=not missing, optional=True, remedy=remedy)]


def _tier(tier: Tier) -> str:
    """Starts a sandbox of a tier for real. Empty when it runs, else why not."""
    from baleen.agent.sandbox import Sandbox, SandboxError, SandboxUnavailable

    async def start() -> None:
        async with Sandbox(tier=tier) as sandbox:
            await sandbox.run(["true"])

    if tier in ("docker", "podman") and shutil.which(tier) is None:
        return "not installed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is weak about it is said where it is used
        try:
            asyncio.run(start())
        except (SandboxUnavailable, SandboxError, OSError) as error:
            return shorten(str(error), 160)
    return ""


def _browser() -> Finding:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return Finding("chromium", path)
    remedy = "only screenshots of the report need it: apt-get install chromium"
    return Finding("chromium", "none", fine=False, optional=True, remedy=remedy)


def _corpus() -> Finding:
    missing = [name for name in ("pyarrow", "datasets") if find_spec(name) is None]
    if not missing:
        return Finding("corpus", "parquet files and Hugging Face datasets can be read")
    remedy = "only for those two kinds of corpus: pip install 'baleen[corpus]'"
    return Finding("corpus", f"without {', '.join(missing)}", fine=False, optional=True, remedy=remedy)
