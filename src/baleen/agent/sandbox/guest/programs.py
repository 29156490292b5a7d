"""How a program begins: what a fork of the server gives up and takes on before the program's own code runs."""

from __future__ import annotations

import errno
import os
import resource
import sys
from _signal import SIG_DFL, SIGCHLD, SIGINT, SIGPIPE, set_wakeup_fd, signal

from baleen.agent.sandbox.guest import processes
from baleen.agent.sandbox.guest.interpreter import CHANNEL
from baleen.agent.sandbox.guest.walls import give_up_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from baleen.agent.sandbox.guest.jobs import Pipes
    from baleen.agent.sandbox.guest.walls import SystemCallFilter


def become_program(
    config: dict[str, Any],
    filters: list[SystemCallFilter],
    pipes: Pipes,
    limits: dict[int, int],
    folder: str,
    body: Callable[[], None],
) -> None:
    """In the child: its own session, its own standard streams, its limits; never returns."""
    try:
        set_wakeup_fd(-1)
        for number in (SIGINT, SIGPIPE, SIGCHLD):
            signal(number, SIG_DFL)
        os.setsid()
        processes.become_heir()
        for descriptor, target in ((pipes.inner_input, 0), (pipes.outer[0], 1), (pipes.outer[1], 2)):
            if descriptor is not None:
                os.dup2(descriptor, target)
        if pipes.inner_channel is not None:
            os.dup2(pipes.inner_channel, CHANNEL, inheritable=False)
        # Above all the pipes to the host.
        os.closerange(CHANNEL + (pipes.inner_channel is not None), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os.chdir(folder)
        os.environ.update(config["environment"])
        for kind, value in limits.items():
            resource.setrlimit(kind, (value, value))
        if config["walls"] is not None:
            give_up_files(config["walls"]["readable"], config["walls"]["writable"], alone=True)
        for each in filters:
            each.install()
        body()
    except OSError as error:
        os.write(2, f"{error.filename or 'the program'}: {error.strerror or error}\n".encode())
    except BaseException:  # noqa: BLE001 - the child must end here, whatever happened
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(1)


def resource_limits(config: dict[str, Any], timeout: float | None) -> dict[int, int]:
    """What one process of a call, or of a program that stays (no timeout), may take."""
    # A user namespace counts its processes from zero, this server included; without one the user's others count.
    others = 1 if config["isolated"] else processes.processes_of_this_user()
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: config["file_bytes"],
        resource.RLIMIT_NOFILE: config["open_files"],
        resource.RLIMIT_NPROC: others + config["processes"],
    }
    seconds = config["cpu_seconds"] or (None if timeout is None else int(timeout) + 2)
    if seconds is not None:
        limits[resource.RLIMIT_CPU] = int(seconds)
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = config["memory_bytes"]
    return limits


def execution(argv: list[str], environment: dict[str, str]) -> Callable[[], None]:
    """The body of a program that is executed."""

    def execute() -> None:
        os.environ.update(environment)
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
            os._exit(127 if error.errno == errno.ENOENT else 126)  # as a shell says it

    return execute
