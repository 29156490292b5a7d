"""Tasks as Harbor folders, out and in: Terminal-Bench 2.0's format.

    task.toml  instruction.md  environment/  solution/solve.sh  tests/test.sh

`export_task` writes one; Harbor's oracle agent must score 1 on it and its nop agent 0. `HarborEnvironment` runs one
here: shell and file tools over our sandbox, and as the verdict what `tests/test.sh` writes to /logs/verifier. A
verifier that wrote nothing scores nothing: None, never 0.
"""

from __future__ import annotations

import functools
import json
import math
import posixpath
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baleen.agent.adapters.harbor_box import TESTS, VERIFIER_LOGS, HarborBox
from baleen.agent.environment import InfrastructureError
from baleen.agent.episode import Episode
from baleen.agent.sandbox import Limits, SandboxError
from baleen.agent.task import Task
from baleen.agent.tools import Tool, Toolbox
from baleen.agent.tools.files import FileTools
from baleen.agent.tools.shell import Shell
from baleen.chat.messages import Message, ToolCall, ToolSpec

ANSWER = "/app/answer.txt"
_CALL_SECONDS = 120.0
_MEGABYTE = 1 << 20
_CLEARED = """cd /workspace && chmod u+rwx . logs
[ -d logs ] || rm -f logs
chmod -R u+rwX tests logs/verifier
rm -rf tests logs/verifier
mkdir -p tests logs/verifier
"""
"""Whatever an agent made of the verifier's places, which are behind the links /tests and /logs, they are empty folders
after this."""


class HarborError(ValueError):
    """A folder that is no Harbor task, or asks for what cannot be had here."""


@dataclass(frozen=True)
class HarborTask:
    """A Harbor task folder, read."""

    folder: Path
    instruction: str
    settings: Mapping[str, Any]
    """`task.toml`, as it stands."""

    @classmethod
    def read(cls, folder: Path | str) -> HarborTask:
        """Raises `HarborError` when a part is missing, or the task has several steps or another system."""
        folder = Path(folder)
        for name in ("task.toml", "instruction.md", "tests/test.sh"):
            if not (folder / name).is_file():
                raise HarborError(f"{folder} has no {name}: a Harbor task needs it")
        try:
            settings = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise HarborError(f"{folder}/task.toml: {error}") from error
        task = cls(folder, (folder / "instruction.md").read_text(encoding="utf-8"), settings)
        if settings.get("steps"):
            raise HarborError(f"{folder}: tasks of several steps are not run here")
        if str(task.environment.get("os", "linux")).lower() != "linux":
            raise HarborError(f"{folder}: only Linux tasks run here")
        return task

    @property
    def name(self) -> str:
        """`org/name`, or the folder's name."""
        return str(self.settings.get("task", {}).get("name", self.folder.name))

    @property
    def environment(self) -> Mapping[str, Any]:
        """The `[environment]` table."""
        table: Mapping[str, Any] = self.settings.get("environment", {})
        return table

    @property
    def has_network(self) -> bool:
        """Whether the agent or the verifier is promised one, which is Harbor's default."""
        of_environment = self.environment.get("network_mode")
        if of_environment is None:
            of_environment = "no-network" if self.environment.get("allow_internet") is False else "public"
        phases = [self.settings.get(phase, {}).get("network_mode") for phase in ("agent", "verifier")]
        return any(mode not in (None, "no-network") for mode in (of_environment, *phases))

    @property
    def verifier_seconds(self) -> float:
        """How long the verifier may take."""
        return float(self.settings.get("verifier", {}).get("timeout_sec", 600.0))

    @property
    def limits(self) -> Limits:
        """The sandbox's limits: the task's own where it names them."""
        return limits_of(self.environment.get("memory_mb"), self.environment.get("storage_mb"))

    def box(self) -> HarborBox:
        """A box for it, not started. Raises `RecipeError` where its environment cannot be built here."""
        return HarborBox(
            self.folder / "environment",
            self.limits,
            workdir=self.environment.get("workdir"),
            variables={name: str(value) for name, value in self.environment.get("env", {}).items()},
        )

    def task(self) -> Task:
        """It as a task of ours, for `HarborEnvironment`."""
        return Task(
            id=self.name,
            family="code",
            domain="code",
            difficulty=1,
            split="test",
            messages=(Message(role="user", content=self.instruction),),
            environment="harbor",
            verifier="tests/test.sh",
            metadata={"folder": str(self.folder)},
        )


class HarborEnvironment:
    """Runs the Harbor folder that a task names: `bash` (a shell that stays), `view`, `create` and `edit` in its box."""

    def __init__(
        self, *, call_seconds: float = _CALL_SECONDS, keep_running: bool = False, offline: bool = False
    ) -> None:
        """`call_seconds`: how long a command may take that names no time itself. `keep_running`: the shell's jobs run
        on while the task is judged (a server that was to be started); one of them could forge the verdict while it is
        written, so they are ended otherwise. `offline`: also runs tasks that are promised a network. There is none
        here, and a verifier that wants one may write 0 for whatever it could not fetch."""
        self.call_seconds, self.keep_running, self.offline = call_seconds, keep_running, offline
        self._shell: Shell | None = None
        self._box: HarborBox | None = None
        self._harbor: HarborTask | None = None
        self._toolbox = Toolbox([])

    async def reset(self, task: Task) -> tuple[list[Message], list[ToolSpec]]:
        """A fresh box. Raises `HarborError` or `RecipeError` for a folder that cannot be run here at all."""
        await self.close()
        harbor = self._harbor = HarborTask.read(task.metadata["folder"])
        if harbor.has_network and not self.offline:
            raise HarborError(
                f"{harbor.folder} is promised a network and there is none here; set network_mode = 'no-network' in its "
                "task.toml, or pass offline=True if it, and its verifier, can do without"
            )
        box = harbor.box()
        await box.start()
        self._box = box
        shell = self._shell = Shell(box.sandbox, timeout=self.call_seconds)
        variables = "".join(f"export {name}={shlex.quote(value)}; " for name, value in box.variables.items())
        await shell.bash(f"{variables}cd {shlex.quote(box.workdir)}")
        files = {name: _from(box.workdir, tool) for name, tool in FileTools(box.sandbox).tools.items()}
        self._toolbox = Toolbox({"bash": shell.bash, **files})
        return list(task.messages), list(self._toolbox.specs)

    async def step(self, calls: Sequence[ToolCall]) -> list[Message]:
        """One answer per call."""
        return await self._toolbox.call_all(calls)

    async def verify(self, episode: Episode) -> dict[str, float | None]:
        """What `tests/test.sh` says, run in the box as it was left: `outcome`, and the other rewards by their names."""
        if self._box is None or self._harbor is None or self._shell is None:
            raise InfrastructureError("the environment was closed before it was asked for its verdict")
        if not self.keep_running:
            await self._shell.close()
        return await judge(self._box, self._harbor)

    async def close(self) -> None:
        """Ends the box."""
        box, self._box = self._box, None
        if box is not None:
            await box.stop()


def _from(folder: str, tool: Tool) -> Tool:
    """`tool` with paths as the shell takes them: relative to where the task works, not to the workspace."""

    @functools.wraps(tool)
    async def placed(path: str, **others: Any) -> Any:
        return await tool(path=posixpath.join(folder, path), **others)

    return placed


async def judge(box: HarborBox, task: HarborTask) -> dict[str, float | None]:
    """Runs the verifier in `box` and reads its rewards. What lies in the verifier's places already is dropped first."""
    await box.run(_CLEARED, timeout=60.0, folder="/")
    await box.upload(task.folder / "tests", TESTS)
    variables = {name: str(value) for name, value in task.settings.get("verifier", {}).get("env", {}).items()}
    command = f"chmod +x {TESTS}/test.sh && {TESTS}/test.sh > {VERIFIER_LOGS}/test-stdout.txt 2>&1"
    result = await box.run(command, timeout=task.verifier_seconds, variables=variables)
    if result.timed_out:
        return {"outcome": None}
    for name in ("reward.json", "reward.txt"):
        try:
            return read_rewards(name, await box.sandbox.read(f"{VERIFIER_LOGS}/{name}"))
        except FileNotFoundError:
            continue
        except OSError:  # no file but something else: not what a verifier writes
            break
        except SandboxError as error:
            raise InfrastructureError(f"the sandbox failed at the verdict of {task.name}: {error}") from error
    return {"outcome": None}


def read_rewards(name: str, content: bytes) -> dict[str, float | None]:
    """The rewards of a verifier's file. `outcome` is the one called `reward`, or the only one; None where the file does
    not hold finite numbers, or several of which none is called so."""
    try:
        text = content.decode("utf-8")
        found = json.loads(text) if name.endswith(".json") else float(text)
        rewards = found if isinstance(found, dict) else {"reward": found}
        parts = {str(key): float(value) for key, value in rewards.items()}
    except (ValueError, TypeError, OverflowError, RecursionError):  # the code under test can write this file
        return {"outcome": None}
    if not all(map(math.isfinite, parts.values())):
        return {"outcome": None}
    outcome = parts.get("reward", next(iter(parts.values())) if len(parts) == 1 else None)
    return {"outcome": outcome} | {key: value for key, value in parts.items() if key not in ("reward", "outcome")}


def limits_of(memory_mb: int | None, storage_mb: int | None) -> Limits:
    """A sandbox's limits for a task that asks for so much memory and disk, in MiB; 2,048 and 1,024 otherwise."""
    return Limits(
        memory_bytes=(memory_mb or 2048) * _MEGABYTE,
        disk_bytes=(storage_mb or 1024) * _MEGABYTE,
        processes=256,
        output_bytes=_MEGABYTE,
    )


def export_task(
    task: Task,
    folder: Path | str,
    *,
    solve: str,
    test: str,
    files: Mapping[str, bytes] | None = None,
    test_files: Mapping[str, bytes] | None = None,
    asks: str = "",
    image: str = "python:3.11-slim",
    agent_seconds: float = 600.0,
    verifier_seconds: float = 600.0,
) -> HarborTask:
    """Writes `task` as a Harbor folder and returns it, read again.

    The instruction is the task's messages, then `asks`: where a result is to be left. `solve` and `test` are shell
    scripts; `files` lie in /app, `test_files` beside the test, which the agent never sees. `test` must write
    /logs/verifier/reward.json. Raises `HarborError` when the folder holds something already.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise HarborError(f"{folder} is not empty; name another folder")
    said = [message.content for message in task.messages if message.content]
    contents: dict[str, bytes] = {
        "instruction.md": ("\n\n".join([*said, *filter(None, [asks])]) + "\n").encode(),
        "task.toml": _settings(task, agent_seconds, verifier_seconds).encode(),
        "environment/Dockerfile": f"FROM {image}\nWORKDIR /app\nCOPY files/ /app/\n".encode(),
        "environment/files/.keep": b"",
        "solution/solve.sh": solve.encode(),
        "tests/test.sh": test.encode(),
    }
    contents |= {f"environment/files/{name}": content for name, content in (files or {}).items()}
    contents |= {f"tests/{name}": content for name, content in (test_files or {}).items()}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if name.endswith(".sh"):
            path.chmod(0o755)
    return HarborTask.read(folder)


def export_question(task: Task, folder: Path | str, answer: str, **options: Any) -> HarborTask:
    """A task whose result is one text: it is to be written to /app/answer.txt, and is right when it is `answer`, but
    for newlines at its end. `options` as for `export_task`."""
    solve = f"#!/bin/sh\ncat > {ANSWER} <<'END_OF_ANSWER'\n{answer}\nEND_OF_ANSWER\n"
    test = f"""#!/bin/sh
reward=0
if [ -f {ANSWER} ] && [ "$(cat {ANSWER})" = "$(cat {TESTS}/answer.txt)" ]; then reward=1; fi
mkdir -p {VERIFIER_LOGS}
printf '{{"reward": %s}}\\n' "$reward" > {VERIFIER_LOGS}/reward.json
"""
    if not answer.strip() or "END_OF_ANSWER" in answer.splitlines():
        raise HarborError("an answer to compare with must not be empty, nor hold the script's own end mark")
    asks = f"Write your answer, and nothing else, to {ANSWER}."
    return export_task(
        task, folder, solve=solve, test=test, test_files={"answer.txt": f"{answer}\n".encode()}, asks=asks, **options
    )


def _settings(task: Task, agent_seconds: float, verifier_seconds: float) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", task.id).strip("-._") or "task"
    text = json.dumps  # a JSON string is a TOML string
    return f"""schema_version = "1.4"

[task]
name = {text(f"baleen/{name}")}

[metadata]
baleen_id = {text(task.id)}
family = {text(task.family)}
domain = {text(task.domain)}
difficulty = {task.difficulty}
split = {text(task.split)}

[agent]
timeout_sec = {agent_seconds}

[verifier]
timeout_sec = {verifier_seconds}

[environment]
network_mode = "no-network"
"""
