"""Attacks by system call: each asks the kernel for something that a sandboxed program must not get.

Numbers are those of x86_64; on other machines these tests are skipped, the filter is the same table's other column.
"""

# ruff: noqa: E501 - a program that attacks is read more easily with one step a line

import platform

import pytest

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls are those of x86_64")

ATTACKS = {
    "mount": """
        os.mkdir("m")
        for source, kind, flags in ((b"none", b"tmpfs", 0), (b"/usr", b"", 4096), (b"none", b"proc", 0), (b"none", b"", 32)):
            must_return_error("mount", libc.mount, source, b"m", kind, flags, b"")
        must_return_error("remount", libc.mount, b"none", b"/", b"", 32, b"")
        must_return_error("umount", libc.umount2, b"/proc", 2)
        for name, number in (("open_tree", 428), ("move_mount", 429), ("fsopen", 430), ("fsmount", 432), ("mount_setattr", 442)):
            must_return_error(name, libc.syscall, number, -100, b"/usr", 1, 0, 0)
    """,
    "new user namespace": """
        must_return_error("unshare", libc.unshare, 0x10000000)
        must_return_error("clone", libc.syscall, 56, 0x10000000 | 17, 0, 0, 0, 0)
        arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
        must_return_error("clone3", libc.syscall, 435, arguments, 88)
        if subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True).returncode == 0: breach()
    """,
    "other new namespaces": """
        for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x20000000, 0x40000000, 0x80):
            must_return_error(hex(flag), libc.unshare, flag)
            if flag != 0x80: must_return_error("clone", libc.syscall, 56, flag | 17, 0, 0, 0, 0)
    """,
    "entering a namespace": """
        for process in ("self", "1"):
            for name in ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup"):
                try: descriptor = os.open(f"/proc/{process}/ns/{name}", os.O_RDONLY)
                except OSError: continue
                must_return_error(name, libc.setns, descriptor, 0)
        must_return_error("pidfd", libc.setns, os.pidfd_open(1), 0x20000)
    """,
    "ptrace": """
        for request in (0, 16, 0x4206):
            must_return_error("ptrace", libc.ptrace, request, 1, 0, 0)
        child = os.fork()
        if child == 0: time.sleep(5); os._exit(0)
        must_return_error("its own child", libc.ptrace, 16, child, 0, 0)
        os.kill(child, 9); os.waitpid(child, 0)
    """,
    "another process's memory": """
        buffer = ctypes.create_string_buffer(64)
        vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
        for number in (310, 311):
            must_return_error(number, libc.syscall, number, 1, vector, 1, vector, 1, 0)
        must_return_error("kcmp", libc.syscall, 312, 1, os.getpid(), 0, 0, 0)
        must_not_open("/proc/1/mem", "/proc/1/maps", "/proc/1/environ", "/proc/1/auxv", "/proc/1/syscall", "/proc/1/stack")
    """,
    "another process's descriptors": """
        must_return_error("pidfd_getfd", libc.syscall, 438, os.pidfd_open(1), 3, 0)
        must_fail("fd", os.listdir, "/proc/1/fd")
        must_not_open(*(f"/proc/1/fd/{number}" for number in range(20)))
    """,
    "keyrings": """
        must_return_error("add_key", libc.syscall, 248, b"user", b"x", b"y", 1, -3)
        must_return_error("request_key", libc.syscall, 249, b"user", b"x", 0, -3)
        for operation in (0, 1, 6, 11): must_return_error("keyctl", libc.syscall, 250, operation, -3, 0, 0, 0)
    """,
    "bpf": """
        attributes = (ctypes.c_uint32 * 32)(2, 4, 4, 1)
        for command in (0, 5, 18): must_return_error("bpf", libc.syscall, 321, command, attributes, 128)
    """,
    "io_uring": """
        parameters = (ctypes.c_uint32 * 30)()
        must_return_error("setup", libc.syscall, 425, 8, parameters)
        must_return_error("enter", libc.syscall, 426, 3, 1, 0, 0, 0, 0)
        must_return_error("register", libc.syscall, 427, 3, 0, 0, 0)
    """,
    "performance counters and page faults": """
        attributes = (ctypes.c_uint32 * 32)(0, 128)
        must_return_error("perf_event_open", libc.syscall, 298, attributes, 0, -1, -1, 0)
        must_return_error("userfaultfd", libc.syscall, 323, 1)
        must_return_error("fanotify", libc.syscall, 300, 0, 0)
    """,
    "kernel modules and another kernel": """
        must_return_error("init_module", libc.syscall, 175, b"x", 1, b"")
        must_return_error("finit_module", libc.syscall, 313, 0, b"", 0)
        must_return_error("delete_module", libc.syscall, 176, b"loop", 0)
        must_return_error("kexec_load", libc.syscall, 246, 0, 0, 0, 0)
        must_return_error("kexec_file_load", libc.syscall, 320, 0, 0, 0, b"", 0)
    """,
    "the clock": """
        must_fail("clock_settime", time.clock_settime, time.CLOCK_REALTIME, 0)
        must_return_error("settimeofday", libc.settimeofday, (ctypes.c_long * 2)(1, 1), None)
        must_return_error("adjtimex", libc.syscall, 159, (ctypes.c_uint32 * 64)(1))
        must_return_error("clock_adjtime", libc.syscall, 305, 0, (ctypes.c_uint32 * 64)(1))
    """,
    "the host's name": """
        before = socket.gethostname()
        must_fail("sethostname", socket.sethostname, "evil")
        must_return_error("setdomainname", libc.setdomainname, b"evil", 4)
        if socket.gethostname() != before or before != "sandbox": breach(before)
    """,
    "priority over others": """
        must_fail("nice", os.nice, -5)
        for policy in (os.SCHED_FIFO, os.SCHED_RR):
            must_fail("real time", os.sched_setscheduler, 0, policy, os.sched_param(1))
        must_return_error("deadline", libc.syscall, 314, 0, (ctypes.c_uint64 * 6)(48 | 6 << 32, 0, 0, 10**6, 10**7, 10**7), 0)
        must_return_error("io", libc.syscall, 251, 1, 0, 1 << 13)
        must_fail("the server", os.setpriority, os.PRIO_PROCESS, 1, 19)
        must_fail("the server", os.setpriority, os.PRIO_USER, 0, 19)
        must_fail("the server", os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
        os.nice(1)
    """,
    "higher limits": """
        import resource
        for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):
            soft, hard = resource.getrlimit(kind)
            if hard == resource.RLIM_INFINITY: breach("no limit", kind)
            must_fail(kind, resource.setrlimit, kind, (hard + 1, hard + 1))
            must_fail(kind, resource.prlimit, 1, kind, (1, 1))
    """,
    "the machine itself": """
        for magic in (0, 0x1234567, 0x4321FEDC): must_return_error("reboot", libc.syscall, 169, 0xfee1dead, 672274793, magic, 0)
        for name, number in (("swapon", 167), ("swapoff", 168), ("acct", 163), ("quotactl", 179), ("vhangup", 153)):
            must_return_error(name, libc.syscall, number, b"/box/work/x", 0, 0, 0)
        must_return_error("syslog", libc.syscall, 103, 3, ctypes.create_string_buffer(64), 64)
        must_return_error("iopl", libc.syscall, 172, 3)
        must_return_error("ioperm", libc.syscall, 173, 0x80, 1, 1)
        must_return_error("modify_ldt", libc.syscall, 154, 1, (ctypes.c_uint32 * 4)(), 16)
        must_return_error("personality", libc.syscall, 135, 0x0400000)
    """,
    "memory that no limit counts": """
        must_return_error("memfd", libc.syscall, 319, b"x", 0)
        must_return_error("memfd_secret", libc.syscall, 447, 0)
        must_return_error("shmget", libc.syscall, 29, 1, 1 << 20, 0o1600)
        must_return_error("semget", libc.syscall, 64, 1, 1, 0o1600)
        must_return_error("msgget", libc.syscall, 68, 1, 0o1600)
        must_return_error("mq_open", libc.syscall, 240, b"x", 0o102, 0o600, 0)
    """,
    "capabilities": """
        status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        if any(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")): breach(status)
        if status["NoNewPrivs"] != "1" or status["Seccomp"] != "2": breach(status)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
        must_return_error("capset", libc.syscall, 126, header, data)
        must_return_error("ambient", libc.prctl, 47, 2, 21, 0, 0)
        must_return_error("new privileges again", libc.prctl, 38, 0, 0, 0, 0)
        must_return_error("securebits", libc.prctl, 28, 0x2f, 0, 0, 0)
    """,
    "the x32 table of system calls": """
        for number in (101, 165, 272, 321, 512, 520, 521):
            must_return_error(number, libc.syscall, 0x40000000 | number, 0, 0, 0, 0, 0)
    """,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_kernel_refuses(name, attempt):
    assert attempt(ATTACKS[name]).exit_code == 0


def test_the_32_bit_entry_to_the_kernel_kills_the_program(inside):
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, getpid; int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print("begun", flush=True)
print("BREACH", call())
"""
    result = inside(lambda sandbox: sandbox.run_python(code))
    assert result.stdout == "begun\n"
    assert result.exit_code < 0
