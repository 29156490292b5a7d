"""Control groups: found in both versions' layouts, used where they can be had, and gone afterwards."""

import asyncio

import pytest

from baleen.agent.sandbox import Limits, Sandbox
from baleen.agent.sandbox.cgroup import ControlGroup, control_group, parent_folders

LIMITS = Limits(memory_bytes=256 << 20, processes=16, disk_bytes=8 << 20, cpu_weight=50)


def layout(tmp_path, mounts, groups):
    """Files as in /proc, for a tree below `tmp_path`."""
    (tmp_path / "mounts").write_text("".join(f"x {tmp_path / point} {kind} {o} 0 0\n" for point, kind, o in mounts))
    (tmp_path / "groups").write_text("".join(f"{line}\n" for line in groups))
    return parent_folders(tmp_path / "mounts", tmp_path / "groups")


def test_version_1_has_a_folder_per_controller(tmp_path):
    for name in ("memory/own", "cpu,cpuacct"):
        (tmp_path / name).mkdir(parents=True)
    mounts = [
        ("memory", "cgroup", "rw,memory"),
        ("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        ("gone", "cgroup", "pids"),
    ]
    found = layout(tmp_path, mounts, ["4:memory:/own", "3:cpu,cpuacct:/of/the/host", "2:pids:/", "0::/"])
    assert found == {"memory": tmp_path / "memory/own", "cpu": tmp_path / "cpu,cpuacct"}
    group = ControlGroup({name: folder / "mine" for name, folder in found.items()}, LIMITS)
    with group.entered():
        assert (tmp_path / "memory/own/mine/tasks").read_text() == "0"
        assert not (tmp_path / "memory/own/tasks").exists()
    assert (tmp_path / "memory/own/tasks").read_text() == "0"
    assert (tmp_path / "memory/own/mine/memory.limit_in_bytes").read_text() == str((256 + 8 + 64) << 20)
    assert (tmp_path / "cpu,cpuacct/mine/cpu.shares").read_text() == "512"


def test_version_2_takes_the_nearest_group_that_passes_the_controllers_on(tmp_path):
    own = tmp_path / "unified/user/session"
    own.mkdir(parents=True)
    for folder, passed in ((own, ""), (own.parent, "cpu memory pids"), (own.parent.parent, "memory")):
        (folder / "cgroup.controllers").write_text("")
        (folder / "cgroup.subtree_control").write_text(passed)
    found = layout(tmp_path, [("unified", "cgroup2", "rw")], ["0::/user/session"])
    assert found == dict.fromkeys(("memory", "pids", "cpu"), own.parent)
    group = ControlGroup({name: folder / "mine" for name, folder in found.items()}, LIMITS)
    mine = own.parent / "mine"
    assert (mine / "memory.max").read_text() == str((256 + 8 + 64) << 20)
    assert (mine / "memory.swap.max").read_text() == "0"
    assert (mine / "pids.max").read_text() == "18"
    assert (mine / "cpu.weight").read_text() == "50"
    group.add(42)
    assert (mine / "cgroup.procs").read_text() == "42"
    group.weigh(12)
    assert (mine / "cpu.weight").read_text() == "12"
    (mine / "memory.events").write_text("low 0\noom 4\noom_kill 3\n")
    assert group.memory_kills() == 3


def test_nothing_mounted_means_nothing_found(tmp_path):
    assert layout(tmp_path, [], ["0::/"]) == {}
    assert parent_folders(tmp_path / "no", tmp_path / "none") == {}


def test_a_sandbox_is_in_its_groups_and_they_are_removed_with_it():
    probe = control_group(LIMITS)
    if probe is None:
        pytest.skip("no control group can be had here")
    asyncio.run(probe.remove())

    async def main():
        async with Sandbox(LIMITS) as sandbox:
            folders = set(sandbox._group._folders.values())
            inside = {folder: (folder / "cgroup.procs").read_text().split() for folder in folders}
            result = await sandbox.run(["cat", "/proc/self/cgroup"])
            return folders, inside, result.stdout

    folders, inside, seen = asyncio.run(main())
    assert all(len(processes) == 2 for processes in inside.values())
    assert not [folder for folder in folders if folder.name in seen]
    assert not [folder for folder in folders if folder.exists()]


def test_the_kernel_ends_what_the_guest_does_not_see_in_time():
    probe = control_group(LIMITS)
    if probe is None or not probe.counts_memory:
        pytest.skip("no control group for memory can be had here")
    asyncio.run(probe.remove())
    code = "import os\nfor _ in range(8):\n  if os.fork() == 0: break\nx = bytearray(200 << 20)\nwhile True: pass"

    async def main():
        async with Sandbox(LIMITS) as sandbox:
            result = await sandbox.run_python(code, timeout=20)
            return result, (await sandbox.run_python("6 * 7")).stdout

    result, after = asyncio.run(main())
    assert result.out_of_memory
    assert after == "42\n"
