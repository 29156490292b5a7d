"""What a sandbox promises: its limits, how a program ended in it, and what may be raised or warned of."""

from __future__ import annotations

from dataclasses import dataclass


class SandboxError(RuntimeError):
    """The sandbox died or stopped answering. Not the fault of one program: start a new sandbox."""


class SandboxUnavailable(RuntimeError):
    """No tier that isolates can be started here."""


class WeakSandboxWarning(UserWarning):
    """Code runs without isolation, or with less than the best of it, or not in the interpreter that was meant."""


@dataclass(frozen=True)
class Limits:
    """What a sandbox may use."""

    memory_bytes: int = 512 << 20
    """Address space of each process, and private memory of all of them together."""

    processes: int = 64
    """Processes and threads at one time."""

    disk_bytes: int = 64 << 20
    """Workspace, /tmp and /dev/shm together; in the tiers `landlock` and `none` only the size of each file."""

    output_bytes: int = 1 << 20
    """Kept of stdout and stderr together per call; the rest is read and dropped."""

    file_bytes: int | None = None
    """The size of one file; None: as large as the disk."""

    cpu_seconds: int | None = None
    """Processor time of each process; None: two seconds more than a call's timeout, unbounded for one that stays."""

    open_files: int = 256
    """Open descriptors of each process."""

    cpu_weight: int = 100
    """Share of the processor beside other sandboxes when all want it, 1 to 10,000. Needs a control group."""


@dataclass(frozen=True)
class RunResult:
    """How one program ended. `exit_code` is negative for a signal, 127 when the program was not found, 126 when it
    cannot be executed."""

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool = False
    out_of_memory: bool = False
    """Killed because its processes together went over `memory_bytes`; one process alone sees a failed allocation."""

    too_many_files: bool = False
    """Killed because it made more files than the disk has blocks of 4 KiB: empty files cost memory too."""

    truncated: bool = False
    """Whether output beyond `output_bytes` was dropped."""

    left_files: bool = False
    """Whether the workspace, /tmp or /dev/shm hold files, so that the next call would not be fresh."""
