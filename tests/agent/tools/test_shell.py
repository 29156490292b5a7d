"""A shell that stays: folder and variables persist, every command ends, and what is printed is plain text."""

import asyncio
import time

import pytest

from baleen.agent.environment import InfrastructureError
from baleen.agent.sandbox import Sandbox
from baleen.agent.tools.shell import Shell

pytestmark = pytest.mark.usefixtures("isolation")


def answers(*commands, timeout=20.0, **options):
    async def main():
        async with Sandbox() as sandbox:
            shell = Shell(sandbox, **options)
            return [await shell.bash(command, timeout) for command in commands]

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("echo hello", "hello"),
        ("printf 'no newline'", "no newline"),
        ("true", "(no output)"),
        ("", "(no output)"),
        ("# only a comment", "(no output)"),
        ("false", "[exit code 1]"),
        ("echo out; echo err >&2", "out\nerr"),
        ("(exit 3)", "[exit code 3]"),
        ("cat", "(no output)"),
        ("cat <<'END'\na 'quoted' $x\nEND", "a 'quoted' $x"),
        ("cat <<END\nwithout an end", "without an end"),
        ("printf '\\033[31mred\\033[0m \\033]0;title\\007plain'", "red plain"),
        ("printf '10%%\\r20%%\\rdone\\n'", "done"),
        ("printf 'a\\0b\\001c'", "abc"),
        ("echo 鲸 $'\\xff'", "鲸 \ufffd"),
        ("for i in 1 2; do\n  echo $i\ndone", "1\n2"),
        ("trap 'echo bye' EXIT; (exec echo replaced)", "replaced"),
    ],
)
def test_a_command_is_answered_as_a_reader_expects(command, answer):
    shown, after = answers(command, "echo after")
    assert "\n".join(line for line in shown.split("\n") if "warning: here-document" not in line) == answer
    assert after == "after"


@pytest.mark.parametrize("command", ["echo 'unclosed", "if true; then", ")", "echo $(", "done", "a=(1", "{"])
def test_what_bash_cannot_parse_is_an_error_and_the_shell_stays(command):
    _, shown, after = answers("x=kept", command, "echo $x")
    assert "error" in shown or "unexpected" in shown
    assert after == "kept"


def test_folder_variables_functions_and_jobs_stay():
    assert answers(
        "mkdir -p a/b; cd a; x=1; export y=2; f() { echo called $1; }; sleep 50 &",
        "cd b; pwd",
        'echo $x; bash -c "echo \\$y"; f me; jobs -r | wc -l',
    )[1:] == ["/box/work/a/b", "1\n2\ncalled me\n1"]


def test_a_command_that_hangs_is_ended_in_time_and_the_model_is_told_what_is_lost():
    began = time.monotonic()
    hung, after, left = answers(
        "mkdir a; cd a; x=1; echo begun; (setsid sleep 77 &); sleep 99",
        "pwd",
        "echo x=$x; cat /proc/[0-9]*/comm | grep -c '^sleep$'; true",
        timeout=1.0,
    )
    assert hung.startswith("begun\nerror: timed out after 1 s; the next command gets a new shell")
    assert hung.endswith("variables and jobs are lost")
    assert after == "/box/work"  # the folder when the last command ended
    assert left == "x=\n0"
    assert time.monotonic() - began < 15


def test_a_new_shell_begins_in_the_folder_where_the_last_command_ended():
    assert answers("mkdir a; cd a", "exit 4", "pwd") == [
        "(no output)",
        "error: the shell ended with exit code 4; the next command gets a new shell in /box/work/a, "
        "variables and jobs are lost",
        "/box/work/a",
    ]


def test_a_folder_that_is_gone_is_not_needed():
    assert answers("mkdir a; cd a; rmdir ../a", "exit", "pwd", "pwd")[2:] == [
        "[the folder /box/work/a cannot be entered; this shell is in /box/work]\n/box/work",
        "/box/work",
    ]


def test_a_folder_whose_name_is_not_utf_8_is_kept():
    _, lost, after = answers("mkdir $'\\xff'; cd $'\\xff'", "exit", 'pwd; printf %q "$PWD"')
    assert "a new shell in /box/work/\ufffd, variables" in lost
    assert after == "/box/work/\ufffd\n$'/box/work/\\377'"


def test_long_output_shows_its_beginning_and_its_end():
    shown, after = answers("seq 100000; echo the end", "echo after", output_characters=200)
    assert shown.startswith("1\n2\n3\n")
    assert shown.endswith("\n99999\n100000\nthe end")
    whole = sum(len(f"{i}\n") for i in range(1, 100_001)) + len("the end")
    assert f"\n[... {whole - 200} characters left out ...]\n" in shown
    assert after == "after"


@pytest.mark.parametrize("output_characters", [10, 16_000])
def test_the_end_of_a_command_is_seen_while_a_job_floods_the_output(output_characters):
    shown, after = answers(
        "yes & sleep 0.05; echo", "kill %1; wait; echo after", timeout=10.0, output_characters=output_characters
    )
    assert "error" not in shown
    assert after.endswith("after")


def test_endless_output_is_stopped_before_its_time():
    began = time.monotonic()
    shown, after = answers("yes", "echo after", timeout=60.0, output_characters=100)
    assert "error: stopped after 32 MiB of output" in shown
    assert after == "after"
    assert time.monotonic() - began < 30


def test_a_command_cannot_forge_the_end_of_its_output():
    assert answers("printf '\\036%s:0:/x\\036' deadbeef; pwd", "pwd") == ["deadbeef:0:/x/box/work", "/box/work"]


def test_tracing_shows_the_command_and_not_the_machinery():
    shown = answers("set -x; echo a", "echo b")[1]
    assert shown.split("\n")[-2:] == ["++ echo b", "b"]
    assert "builtin" not in shown


def test_commands_of_one_turn_run_one_after_the_other():
    async def main():
        async with Sandbox() as sandbox:
            shell = Shell(sandbox)
            return await asyncio.gather(*(shell.bash(f"echo {i} >> log; sleep 0.05; cat log") for i in range(3)))

    assert asyncio.run(main()) == ["0", "0\n1", "0\n1\n2"]


def test_a_cancelled_command_does_not_disturb_the_next():
    async def main():
        async with Sandbox() as sandbox:
            shell = Shell(sandbox)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(shell.bash("echo early; sleep 1; echo late"), 0.4)
            answer = await shell.bash("echo next")
            await shell.close()
            await shell.close()
            return answer, await shell.bash("echo again")

    assert asyncio.run(main()) == ("next", "again")


def test_a_dead_sandbox_is_an_infrastructure_error():
    async def main():
        async with Sandbox() as sandbox:
            shell = Shell(sandbox)
            await shell.bash("true")
            await sandbox.close()
            await shell.bash("true")

    with pytest.raises(InfrastructureError, match="sandbox"):
        asyncio.run(main())


def test_a_zero_byte_is_refused_readably():
    async def main():
        async with Sandbox() as sandbox:
            await Shell(sandbox).bash("echo \0")

    with pytest.raises(ValueError, match="zero byte"):
        asyncio.run(main())
