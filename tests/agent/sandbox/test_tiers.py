"""Tiers other than the best: chosen when they must be, reported, and refused when they isolate nothing."""

import asyncio
import json
import os
import shutil
import stat
import sys
import warnings

import pytest

from baleen.agent.sandbox import Limits, Sandbox, SandboxError, SandboxUnavailable, WeakSandboxWarning

LIMITS = Limits(memory_bytes=256 << 20, processes=16, disk_bytes=8 << 20)

# Records its command line, then really runs the command that it was given: in a bubblewrap with the folders, the
# variables and the user that an engine would have given it.
ENGINE = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
json.dump(arguments, open({record!r}, "w"))
takes_value = ("--network --tmpfs --workdir --user --cap-drop --security-opt --memory --memory-swap --pids-limit "
               "--cpu-shares --hostname --env --volume").split()
command = ["bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--as-pid-1",
           "--die-with-parent", "--clearenv", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
for name in ("bin", "lib", "lib64"):
    if os.path.islink("/" + name): command += ["--symlink", os.readlink("/" + name), "/" + name]
position = 1
while arguments[position].startswith("--"):
    option, value = arguments[position], arguments[position + 1]
    if option == "--tmpfs": command += ["--tmpfs", value.split(":")[0]]
    if option == "--workdir": command += ["--chdir", value]
    if option == "--env": command += ["--setenv", *value.split("=", 1)]
    position += 2 if option in takes_value else 1
os.execvp("bwrap", command + ["--"] + arguments[position + 1:])
"""


def in_sandbox(work, **options):
    async def main():
        async with Sandbox(LIMITS, **options) as sandbox:
            return await work(sandbox)

    return asyncio.run(main())


@pytest.fixture
def without_bubblewrap(monkeypatch):
    real = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name == "bwrap" else real(name))


def test_without_bubblewrap_the_next_tier_is_taken_and_told(without_bubblewrap):
    async def work(sandbox):
        return sandbox.tier, (await sandbox.run_python("6 * 7")).stdout

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            tier, answer = in_sandbox(work)
        except SandboxUnavailable as reason:
            pytest.skip(str(reason))
    assert (tier, answer) == ("landlock", "42\n")
    text = next(str(w.message) for w in said if w.category is WeakSandboxWarning)
    assert "bwrap is not installed" in text
    assert "no loopback" in text


def test_one_failed_start_of_a_tier_that_works_here_is_no_reason_for_a_weaker_one(monkeypatch, tmp_path):
    async def work(sandbox):
        return sandbox.tier

    assert in_sandbox(work) == "bubblewrap"
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    real = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: str(broken) if name == "bwrap" else real(name))
    with pytest.raises(SandboxError, match="try again"):
        in_sandbox(work, allow_weak=True)


def test_a_tier_that_was_asked_for_is_not_replaced(without_bubblewrap):
    async def work(sandbox):
        raise AssertionError("it started")

    with pytest.raises(SandboxUnavailable, match="bwrap is not installed"):
        in_sandbox(work, tier="bubblewrap", allow_weak=True)


def test_links_need_a_file_system_of_their_own(without_bubblewrap):
    async def work(sandbox):
        raise AssertionError("it started")

    with pytest.raises(SandboxUnavailable, match="links"):
        in_sandbox(work, links={"/app": "app"}, allow_weak=True)


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="the stand-in for an engine runs in bubblewrap")
def test_an_engine_gets_the_walls_on_its_command_line_and_the_guest_on_its_streams(engine, tmp_path, monkeypatch):
    record, program = tmp_path / "arguments.json", tmp_path / engine
    program.write_text(ENGINE.format(python=sys.executable, record=str(record)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("BALEEN_SANDBOX_IMAGE", "mine:1")

    async def work(sandbox):
        await sandbox.write("a/file", b"content")
        process = await sandbox.start(["cat"])
        await process.send(b"beside")
        result = await sandbox.run(["sh", "-c", "cat a/file; echo $MINE; id -u; ls /etc 2>&1 | wc -l"])
        said = await process.receive(5)
        await sandbox.reset()
        return sandbox.tier, result, said, await sandbox.list(), (await sandbox.run_python("6 * 7")).stdout

    tier, result, said, left, answer = in_sandbox(work, tier=engine, environment={"MINE": "m"}, readable=["/usr/share"])
    assert (tier, said, left, answer) == (engine, b"beside", [], "42\n")
    assert result.stdout.split()[:2] == ["contentm", "65534"]
    arguments = json.loads(record.read_text())
    text = " ".join(arguments)
    for wall in (
        *("run --rm --interactive", "--network none", "--read-only", "--user 65534:65534", "--cap-drop ALL"),
        *("--security-opt no-new-privileges", f"--memory {264 << 20}", f"--memory-swap {264 << 20}", "--pids-limit 17"),
        *("--volume /usr/share:/usr/share:ro", f"size={8 << 20}"),
    ):
        assert wall in text
    assert arguments[arguments.index("mine:1") + 1] == "python3"


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_engine_that_is_missing_or_does_not_run_is_told(engine, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")

    async def work(sandbox):
        raise AssertionError("it started")

    with pytest.raises(SandboxUnavailable, match=f"(?i){engine}"):
        in_sandbox(work, tier=engine)
