"""The system calls that sandboxed code does not get, as a classic BPF program for `bwrap --seccomp`.

A deny list: what reaches into other processes (ptrace), changes mounts or namespaces, talks to rarely tested kernel
subsystems (bpf, io_uring, keyrings), or holds memory that no limit counts (memfd, System V and POSIX queues). Sockets
are left to the families that a network namespace isolates: AF_VSOCK would reach a virtual machine's host.
Source: Linux `seccomp(2)`, `include/uapi/linux/{seccomp,filter,audit}.h`; numbers from the kernel's syscall tables.
"""

from __future__ import annotations

import errno
import platform
import struct


def seccomp_filter(machine: str | None = None, *, network: bool = True) -> bytes | None:
    """The compiled filter for this machine (or the one named), None where the syscall table is not known here.

    `network`: sockets of the families that a network namespace isolates; without one no socket can be had, and only
    `socketpair` remains.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        return None
    audit_arch, column = _ARCHITECTURES[machine]
    program = [
        _load(_ARCH_OFFSET),
        _jump(_JEQ, audit_arch, 1, 0),
        _return(_KILL_PROCESS),
        _load(_NUMBER_OFFSET),
        # x32 calls carry this bit and would slip past the numbers below.
        _jump(_JGE, 0x40000000, 0, 1),
        _return(_error(errno.ENOSYS)),
    ]
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            program += [_jump(_JEQ, number, 0, 1), _return(_error(errno.EPERM))]
    # clone3 hides its flags behind a pointer; ENOSYS makes the C library fall back to clone.
    program += [_jump(_JEQ, _CLONE3, 0, 1), _return(_error(errno.ENOSYS))]
    program += [
        _jump(_JEQ, _CLONE[column], 0, 4),
        _load(_FIRST_ARGUMENT_OFFSET),
        _jump(_JSET, _NEW_NAMESPACES, 0, 1),
        _return(_error(errno.EPERM)),
        _return(_ALLOW),
    ]
    allowed = _SOCKET_FAMILIES if network else ()
    families = [_jump(_JEQ, family, len(allowed) - i, 0) for i, family in enumerate(allowed)]
    program += [
        _jump(_JEQ, _SOCKET[column], 0, 2 + len(families)),
        _load(_FIRST_ARGUMENT_OFFSET),
        *families,
        _return(_error(errno.EAFNOSUPPORT)),
        _return(_ALLOW),
    ]
    return b"".join(program)


def program_filter(machine: str | None = None) -> bytes | None:
    """The second filter, for programs and not for the server that starts them: what reaches a neighbour by its number.

    Programs and server are the same user, so the kernel would let a program take the server's descriptors away
    (`prlimit`) or starve it (`sched_setscheduler`). Only the caller itself, number 0, can be meant.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        return None
    audit_arch, column = _ARCHITECTURES[machine]
    program = [_load(_ARCH_OFFSET), _jump(_JEQ, audit_arch, 1, 0), _return(_KILL_PROCESS), _load(_NUMBER_OFFSET)]
    # C libraries set the default policy, SCHED_OTHER, on each of their threads by its number; libzmq aborts where it is
    # refused, and no Jupyter kernel would run. It starves nobody.
    program += [
        _jump(_JEQ, _ONLY_ITSELF["sched_setscheduler"][0][column], 0, 4),
        _load(_FIRST_ARGUMENT_OFFSET + 8),
        _jump(_JEQ, 0, 0, 1),
        _return(_ALLOW),
        _load(_NUMBER_OFFSET),
    ]
    for numbers, arguments in _ONLY_ITSELF.values():
        checks = []
        for index, argument in enumerate(arguments):
            to_refusal = 2 * (len(arguments) - 1 - index) + 1
            checks += [_load(_FIRST_ARGUMENT_OFFSET + 8 * argument), _jump(_JEQ, 0, 0, to_refusal)]
        checks += [_return(_ALLOW), _return(_error(errno.EPERM))]
        program += [_jump(_JEQ, numbers[column], 0, len(checks)), *checks]
    return b"".join([*program, _return(_ALLOW)])


_ONLY_ITSELF = {
    "prlimit64": ((302, 261), (0,)),
    "setpriority": ((141, 140), (0, 1)),
    "sched_setscheduler": ((144, 119), (0,)),
    "sched_setparam": ((142, 118), (0,)),
    "sched_setattr": ((314, 274), (0,)),
    "sched_setaffinity": ((203, 122), (0,)),
}
"""Numbers as below, and which arguments must be 0: a process, or a kind of number and the number."""

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_NUMBER_OFFSET, _ARCH_OFFSET, _FIRST_ARGUMENT_OFFSET = 0, 4, 16
_LOAD_WORD, _RETURN, _JEQ, _JGE, _JSET = 0x20, 0x06, 0x15, 0x35, 0x45
_KILL_PROCESS, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000

_CLONE, _CLONE3, _SOCKET = (56, 220), 435, (41, 198)
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET together."""

_SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: each bound to the empty network namespace."""

_DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "ioprio_set": (251, 30),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "personality": (135, 92),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
"""Name: number on x86_64, number on aarch64."""


def _instruction(code: int, yes: int, no: int, k: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD_WORD, 0, 0, offset)


def _jump(code: int, k: int, yes: int, no: int) -> bytes:
    return _instruction(code, yes, no, k)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, 0, 0, action)


def _error(number: int) -> int:
    return _ERRNO | number
