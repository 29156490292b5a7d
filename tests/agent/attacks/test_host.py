"""Attacks on what belongs to the host: its files, secrets, processes, devices and system folders."""

# ruff: noqa: E501 - a program that attacks is read more easily with one step a line

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from baleen.agent.sandbox import SandboxPool


@pytest.fixture
def secret():
    """A file of the host that everybody may read."""
    path = Path(f"/tmp/baleen-secret-{uuid.uuid4().hex}")
    path.write_text("hunter2")
    path.chmod(0o644)
    yield path
    path.unlink()


def test_files_of_the_host_cannot_be_read(attempt, secret):
    tried = attempt(f"""
        must_not_open("/etc/shadow", "/etc/group-", "/etc/hostname", "/etc/machine-id", "/boot/vmlinuz",
                      {str(secret)!r}, {__file__!r}, {str(Path.home() / ".profile")!r})
        if len(open("/etc/passwd").readlines()) != 1: breach("the host's users")
        for path in ("/root", "/home", "/var", "/srv", "/mnt", "/media", "/run", "/sys", "/boot", "/lost+found"):
            if os.path.exists(path): breach(path)
    """)
    assert tried.exit_code == 0


def test_the_root_of_another_process_is_no_way_out(attempt, secret):
    tried = attempt(f"""
        for start in ("/proc/1/root", "/proc/1/cwd", "/proc/self/root/..", "/proc/self/cwd/../../../..", "/.."):
            must_not_open(start + {str(secret)!r}, start + "/etc/shadow")
    """)
    assert tried.exit_code == 0


def test_a_chroot_is_refused_so_that_none_can_be_left(attempt, secret):
    tried = attempt(f"""
        os.mkdir("jail")
        must_fail("chroot", os.chroot, "jail")
        must_return_error("pivot_root", libc.syscall, 155, b"/", b"/box/work/jail")
        os.chdir("/")
        for _ in range(64): os.chdir("..")
        must_not_open("." + {str(secret)!r})
    """)
    assert tried.exit_code == 0


def test_file_handles_cannot_be_opened(attempt):
    tried = attempt("""
        handle = (ctypes.c_ubyte * 136)(128)
        mount = ctypes.c_int()
        must_return_error("name_to_handle_at", libc.syscall, 303, -100, b"/usr", handle, ctypes.byref(mount), 0)
        must_return_error("open_by_handle_at", libc.syscall, 304, os.open("/usr", 0), handle, 0)
    """)
    assert tried.exit_code == 0


def test_secrets_of_the_environment_are_not_seen(attempt, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    tried = attempt("""
        import glob
        if "hunter2" in str(os.environ): breach("environment")
        for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
            try:
                if b"hunter2" in open(path, "rb").read(): breach(path)
            except OSError:
                pass
    """)
    assert tried.exit_code == 0


def test_credentials_of_git_ssh_and_clouds_are_not_seen(attempt, monkeypatch):
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent.sock")
    monkeypatch.setenv("GIT_ASKPASS", "/bin/echo")
    home = Path.home()
    tried = attempt(f"""
        for home in ({str(home)!r}, "/root", os.environ["HOME"], os.path.expanduser("~")):
            for name in (".ssh", ".git-credentials", ".gitconfig", ".netrc", ".aws", ".config", ".kube", ".docker",
                         ".npmrc", ".pypirc", ".cache", ".bash_history"):
                if os.path.exists(os.path.join(home, name)): breach(home, name)
        for name in ("SSH_AUTH_SOCK", "GIT_ASKPASS"):
            if name in os.environ: breach(name)
        for path in ("/etc/gitconfig", "/etc/ssh", "/etc/kubernetes", "/var/run/secrets"):
            if os.path.exists(path): breach(path)
    """)
    assert tried.exit_code == 0


def test_processes_of_the_host_are_not_seen_and_not_killed(attempt):
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    victim = subprocess.Popen(["sleep", "60"], **user)
    try:
        attempt(f"""
            seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            if len(seen) > 2: breach(seen)
            for process in range(2, 70_000):
                if process != os.getpid():
                    try: os.kill(process, signal.SIGKILL); breach("killed", process)
                    except ProcessLookupError: pass
            must_fail("priority", os.setpriority, os.PRIO_PROCESS, {victim.pid}, 19)
        """)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_proc_does_not_change_the_kernel(attempt):
    tried = attempt("""
        for path in ("sys/kernel/core_pattern", "sys/kernel/hostname", "sys/vm/drop_caches", "sys/vm/overcommit_memory",
                     "sys/kernel/randomize_va_space", "sysrq-trigger", "self/uid_map", "self/gid_map",
                     "self/setgroups", "irq/default_smp_affinity", "sys/fs/binfmt_misc/register", "timer_list"):
            try:
                file = os.open("/proc/" + path, os.O_WRONLY)
                os.write(file, b"1"); breach(path)
            except OSError:
                pass
        must_fail("safer from the killer", lambda: open("/proc/self/oom_score_adj", "w").write("-1000"))
    """)
    assert tried.exit_code == 0


def test_proc_does_not_show_the_kernels_memory(attempt):
    tried = attempt("""
        must_not_open("/proc/kcore", "/proc/kmsg", "/proc/kpageflags", "/proc/kpagecount", "/proc/vmallocinfo")
        try:
            addresses = {line.split()[0].strip("0") for line in open("/proc/kallsyms")}
            if addresses != {""}: breach("addresses of the kernel")
        except OSError:
            pass
    """)
    assert tried.exit_code == 0


def test_devices_are_the_five_harmless_ones(attempt):
    tried = attempt("""
        found = {name for name in os.listdir("/dev")} - {"null", "zero", "full", "random", "urandom", "fd", "shm"}
        if found: breach(found)
        must_not_open("/dev/mem", "/dev/kmem", "/dev/port", "/dev/sda", "/dev/vda", "/dev/kvm", "/dev/fuse", "/dev/tty")
        for kind, device in ((stat.S_IFCHR, (1, 1)), (stat.S_IFBLK, (254, 0)), (stat.S_IFBLK, (8, 0))):
            must_fail("mknod", os.mknod, "node", kind | 0o600, os.makedev(*device))
        import fcntl
        must_fail("terminal input", fcntl.ioctl, 0, 0x5412, b"x")
    """)
    assert tried.exit_code == 0


def test_the_system_cannot_be_written(attempt):
    tried = attempt("""
        for path in ("/x", "/usr/x", "/usr/bin/x", "/bin/x", "/etc/x", "/opt/x", "/dev/x", "/lib/x", "/proc/x", "/box/../x",
                     "/etc/ld.so.preload", "/usr/lib/python3/dist-packages/sitecustomize.py"):
            must_fail(path, open, path, "w")
        must_fail("python3", open, os.path.realpath(sys.executable), "r+b")
        must_fail("unlink", os.unlink, "/usr/bin/env")
        must_fail("chmod", os.chmod, "/usr/bin/env", 0o4755)
        must_fail("link", os.symlink, "/box/work", "/usr/bin/link")
    """)
    assert tried.exit_code == 0


def test_the_running_program_cannot_be_overwritten(attempt):
    tried = attempt("""
        for process in ("self", "1"):
            for mode in ("r+b", "wb", "ab"):
                must_fail(process, open, f"/proc/{process}/exe", mode)
        descriptor = os.open("/proc/self/exe", os.O_PATH)
        must_fail("by descriptor", open, f"/proc/self/fd/{descriptor}", "r+b")
    """)
    assert tried.exit_code == 0


def test_setuid_programs_give_nothing(attempt):
    result = attempt(
        """
        found = [entry.path for entry in os.scandir("/usr/bin") if entry.is_file() and entry.stat().st_mode & stat.S_ISUID]
        for path in found:
            for arguments in ([], ["-c", "id -u"], ["--version"]):
                out = subprocess.run([path, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=5)
                if out.stdout.strip() == "0": breach(path)
        own = os.path.join(os.getcwd(), "own")
        import shutil; shutil.copy("/usr/bin/id", own); os.chmod(own, 0o6755)
        if subprocess.run([own, "-u"], capture_output=True, text=True).stdout.strip() == "0": breach("own")
        for call in (os.setuid, os.setgid, os.seteuid, os.setegid):
            must_fail(call.__name__, call, 0)
        must_fail("setgroups", os.setgroups, [0])
        print(len(found))
    """,
        timeout=30,
    )
    assert result.stdout.split()[0].isdigit()


def test_nothing_stays_in_a_pool_for_the_next_user(inside):
    plant = """
import os
for path in ("sitecustomize.py", "usercustomize.py", "json.py", "os.py", ".bashrc", ".profile", "evil.so", ".pythonrc.py",
             "/tmp/evil.so", "/dev/shm/evil", ".local/lib/python3.11/site-packages/evil.pth"):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    open(path, "w").write("print('BREACH')")
os.environ["LD_PRELOAD"] = "/tmp/evil.so"
os.environ["BASH_ENV"] = "/box/work/.bashrc"
os.umask(0o777)
import builtins, sys; builtins.print = None; sys.path.insert(0, "/tmp")
"""

    async def attack(_):
        async with SandboxPool(size=1) as pool:
            async with pool.take() as first:
                planted = await first.run_python(plant)
                await first.start(["sh", "-c", "while true; do echo evil > /tmp/again; done"])
            async with pool.take() as second:
                assert second is first
                shell = await second.run(
                    ["bash", "-c", "env; ls -A . /tmp /dev/shm; ps ax 2>/dev/null | grep -c again"]
                )
                python = await second.run_python(
                    "import os, sys, json; print(len(json.dumps(sys.path)) > 0, os.umask(0))"
                )
                return planted, shell, python

    planted, shell, python = inside(attack)
    assert planted.exit_code == 0, planted
    assert "LD_PRELOAD" not in shell.stdout
    assert "evil" not in shell.stdout
    assert shell.stdout.split(".:\n")[1].split()[:2] == ["/dev/shm:", "/tmp:"]
    assert python.stdout.split()[0] == "True"
    assert "BREACH" not in python.stdout + shell.stdout


def test_readable_folders_stay_as_they_are(inside, tmp_path):
    folder = Path(f"/tmp/baleen-lent-{uuid.uuid4().hex}")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "file").write_text("host")
    (folder / "file").chmod(0o666)
    try:
        code = f"""
import os
print(open({str(folder / "file")!r}).read())
for call in (lambda: open({str(folder / "file")!r}, "w"), lambda: open({str(folder / "new")!r}, "w"),
             lambda: os.unlink({str(folder / "file")!r}), lambda: os.rename({str(folder)!r}, "/tmp/x")):
    try: call(); print("BREACH")
    except OSError: pass
"""

        async def attack(sandbox):
            result = await sandbox.run_python(code)
            await sandbox.reset()
            return result

        result = inside(attack, readable=[folder])
        assert result.stdout == "host\n", result
        assert (folder / "file").read_text() == "host"
        assert [path.name for path in folder.iterdir()] == ["file"]
    finally:
        (folder / "file").unlink()
        folder.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="the file system of Linux")
def test_control_groups_are_not_there_to_be_left(attempt):
    tried = attempt("""
        if os.path.exists("/sys"): breach("/sys")
        os.mkdir("cgroup")
        for kind in (b"cgroup", b"cgroup2"):
            must_return_error("mount", libc.mount, b"none", b"cgroup", kind, 0, b"")
    """)
    assert tried.exit_code == 0
