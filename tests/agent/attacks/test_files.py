"""Attacks through the files that go in and out: links, pipes and names that would lead the host astray."""

import os
import stat

import pytest


def after(inside, script, action):
    """Runs a shell script in a sandbox, then the coroutine function `action` with the sandbox."""

    async def attack(sandbox):
        made = await sandbox.run(["sh", "-c", script])
        assert made.exit_code == 0, made
        return await action(sandbox)

    return inside(attack)


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "/proc/1/environ", "link", "folder/passwd", "up/x", "\0", "/box/x"]
)
def test_reading_and_writing_stay_in_the_workspace(path, inside):
    async def action(sandbox):
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the path
            await sandbox.read(path)
        with pytest.raises(OSError):  # noqa: PT011
            await sandbox.write(path, b"evil")

    after(inside, "ln -s /proc/1/environ link; ln -s /etc folder; ln -s .. up", action)


def test_hard_links_to_other_files_cannot_be_made(attempt):
    tried = attempt("""
        for path in ("/etc/passwd", "/usr/bin/env", "/proc/self/environ", "/dev/null"):
            must_fail(path, os.link, path, "link")
    """)
    assert tried.exit_code == 0


def test_pipes_and_devices_are_not_opened(inside):
    async def action(sandbox):
        for path in ("pipe", "socket", "null", "."):
            with pytest.raises(OSError):  # noqa: PT011
                await sandbox.read(path)
            with pytest.raises(OSError):  # noqa: PT011
                await sandbox.write(path, b"x")

    script = "mkfifo pipe; ln -s /dev/null null; python3 -c 'import socket; socket.socket(1).bind(\"socket\")'"
    after(inside, script, action)


def test_a_folder_that_is_read_brings_no_link_that_leads_out(inside, tmp_path):
    script = """mkdir -p a/b deep/er; echo ok > a/file; chmod 6777 a/file; mkfifo a/pipe
        ln -s /etc/passwd absolute; ln -s ../../../../etc/passwd relative; ln -s file a/fine; ln -s ../a a/b/round
        ln -s deep/er hop; ln -s hop/../../.. through; ln -s .. a/b/up; ln -s ../../.. a/b/out; ln -s . self"""

    async def action(sandbox):
        await sandbox.read_folder(".", tmp_path / "out")

    after(inside, script, action)
    out = tmp_path / "out"
    for where, folders, files in os.walk(out):
        for name in [*folders, *files]:
            path = os.path.join(where, name)
            assert os.path.realpath(path).startswith(str(out)), path
            assert os.path.isfile(path) or os.path.isdir(path) or os.path.islink(path)
            assert not os.lstat(path).st_mode & (stat.S_ISUID | stat.S_ISGID)
    assert (out / "a" / "fine").read_text() == "ok\n"
    assert not (out / "absolute").is_symlink()
    assert not (out / "through").is_symlink()


def test_a_folder_that_is_read_cannot_be_larger_than_the_disk(inside, tmp_path):
    script = "i=0; while [ $i -lt 20 ]; do truncate -s 8M sparse$i; i=$((i+1)); done"

    async def action(sandbox):
        with pytest.raises(OSError, match="larger than the workspace"):
            await sandbox.read_folder(".", tmp_path / "out")

    after(inside, script, action)


def test_a_folder_is_not_written_through_a_link(inside, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "passwd").write_text("evil")

    async def action(sandbox):
        for target in ("etc", "/etc", "../..", "etc/x"):
            with pytest.raises(OSError):  # noqa: PT011
                await sandbox.write_folder(tmp_path / "in", target)
        return await sandbox.run(["cat", "/etc/passwd"])

    assert "evil" not in after(inside, "ln -s /etc etc", action).stdout


def test_odd_names_come_and_go_unharmed(inside, tmp_path):
    script = r"""mkdir "$(printf 'new\nline')"; touch "$(printf 'bytes\377')" -- '-rf' '; rm -rf *' '$(id)' "'" ' '"""

    async def action(sandbox):
        names = await sandbox.list()
        await sandbox.read_folder(".", tmp_path / "out")
        await sandbox.snapshot()
        await sandbox.run(["sh", "-c", "rm -rf -- *"])
        await sandbox.reset()
        return names, await sandbox.list()

    names, again = after(inside, script, action)
    assert names == again
    assert len(names) == 7
    assert len(os.listdir(tmp_path / "out")) == 7


def test_a_link_that_flips_while_it_is_read_gives_nothing_from_outside(inside):
    flip = "while true; do ln -sfn /proc/1 d; rm -rf d; mkdir d; echo mine > d/environ; rm -rf d; done"

    async def attack(sandbox):
        flipping = await sandbox.start(["sh", "-c", flip])
        seen = set()
        for _ in range(150):
            try:
                seen.add(await sandbox.read("d/environ"))
            except OSError:
                continue
        await flipping.kill()
        return seen

    assert not [content for content in inside(attack) if b"PATH=" in content]
