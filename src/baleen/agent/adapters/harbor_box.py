"""The box in which a Harbor task is solved: our sandbox with Harbor's paths, built from the task's `environment/`.

/app, /logs, /tests and /solution, and whatever else the Dockerfile names, are links into the sandbox's workspace, the
only place that can be written (so `find /app` needs a slash at its end). Commands run in bash; what a command leaves
running ends with it.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from shutil import copy2, copytree

from baleen.agent.adapters.dockerfile import Copy, Recipe, RecipeError, read_recipe
from baleen.agent.environment import InfrastructureError
from baleen.agent.sandbox import Limits, RunResult, Sandbox, SandboxError, SandboxUnavailable

TESTS, SOLUTION = "/tests", "/solution"
AGENT_LOGS, VERIFIER_LOGS, ARTIFACTS = "/logs/agent", "/logs/verifier", "/logs/artifacts"
_ALWAYS = ("/app", "/logs", TESTS, SOLUTION)
_BUILD_SECONDS = 600.0
_OF_THE_SYSTEM = {"bin", "box", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt", "proc", "sbin", "sys", "usr"}
_OPEN = {"tmp", "workspace"}
"""Folders at the root that the sandbox has, and that can be written."""


class HarborBox:
    """One box. `folder` is the task's `environment/`; `workdir` overrides the Dockerfile's.

    Raises `RecipeError` for a definition that cannot be followed here, before anything is started.
    """

    def __init__(
        self, folder: Path, limits: Limits, *, workdir: str | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.limits = folder, limits
        self.recipe = _recipe(folder)
        self.workdir = workdir or self.recipe.workdir
        self.variables = {**self.recipe.variables, **(variables or {})}
        self.links = _links(self.recipe, self.workdir)
        self._sandbox: Sandbox | None = None

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox of a started box. Raises `InfrastructureError` before and after."""
        if self._sandbox is None:
            raise InfrastructureError("the box is not started")
        return self._sandbox

    async def start(self) -> None:
        """Starts the sandbox and builds what the Dockerfile asks for. Raises `InfrastructureError`, and `RecipeError`
        where files are missing."""
        sandbox = Sandbox(self.limits, links=self.links)
        try:
            self._sandbox = await sandbox.__aenter__()
        except (SandboxUnavailable, SandboxError, OSError) as error:
            raise InfrastructureError(f"no sandbox for this task: {error}") from error
        try:
            folders = [AGENT_LOGS, VERIFIER_LOGS, ARTIFACTS, *self.recipe.folders, self.workdir]
            await self._must(f"mkdir -p {shlex.join(dict.fromkeys(folders))}", "/")
            for step in self.recipe.steps:
                if isinstance(step, Copy):
                    await self._copy(step)
                else:
                    await self._must(step.command, step.folder, step.variables)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends all that runs in it and drops its files. May be called twice."""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            await sandbox.close()

    async def run(
        self, command: str, *, timeout: float, folder: str | None = None, variables: Mapping[str, str] | None = None
    ) -> RunResult:
        """Runs `command` in bash, in `folder` or where the task works, for `timeout` seconds at most. Raises
        `InfrastructureError` when the sandbox is gone."""
        environment = {**self.variables, **(variables or {})}
        # Bash goes there itself: so its PWD is the path that was asked for, not where the link leads.
        argv = ["bash", "-c", f"cd {shlex.quote(folder or self.workdir)} || exit 126\n{command}"]
        try:
            return await self.sandbox.run(argv, timeout=timeout, environment=environment)
        except (SandboxError, OSError) as error:
            raise InfrastructureError(f"the sandbox failed at {command[:80]!r}: {error}") from error

    async def upload(self, source: Path, target: str) -> None:
        """Puts a file at `target`, or a folder's content below it. Raises `InfrastructureError` where the box cannot
        take it: a disk that is full, a path that cannot be written."""
        try:
            if source.is_dir():
                await self.sandbox.write_folder(source, target)
            else:
                await self.sandbox.write(target, source.read_bytes())
                if source.stat().st_mode & 0o111:
                    await self._must(f"chmod +x {shlex.quote(target)}", "/")
        except (SandboxError, OSError) as error:
            raise InfrastructureError(f"{source} cannot be put to {target}: {error}") from error

    async def _copy(self, step: Copy) -> None:
        """Gathers the sources as they shall lie, then puts them there at once."""
        with tempfile.TemporaryDirectory(prefix="baleen-copy-") as gathered:
            into = Path(gathered, "content")
            into.mkdir()
            for found in self._sources(step):
                if found.is_dir():
                    copytree(found, into, symlinks=True, dirs_exist_ok=True)
                elif step.target.endswith("/"):
                    copy2(found, into / found.name)
                else:
                    copy2(found, into / PurePosixPath(step.target).name)
            names_a_file = not step.target.endswith("/") and not any(one.is_dir() for one in self._sources(step))
            target = PurePosixPath(step.target).parent if names_a_file else PurePosixPath(step.target)
            await self._must(f"mkdir -p {shlex.quote(str(target))}", "/")
            await self.upload(into, str(target))

    def _sources(self, step: Copy) -> list[Path]:
        found = []
        for source in step.sources:
            relative = source.lstrip("/") or "."
            matches = [self.folder] if relative in (".", "./") else sorted(self.folder.glob(relative.rstrip("/")))
            if not matches or not all(match.resolve().is_relative_to(self.folder.resolve()) for match in matches):
                raise RecipeError(f"COPY {source}: not in {self.folder}")
            found += matches
        return found

    async def _must(self, command: str, folder: str, variables: Mapping[str, str] | None = None) -> None:
        result = await self.run(command, timeout=_BUILD_SECONDS, folder=folder, variables=variables)
        if result.exit_code != 0:
            text = (result.stderr or result.stdout).strip()[-300:]
            raise InfrastructureError(
                f"the box cannot be built, {command[:120]!r} ended with {result.exit_code} (there is no network, and "
                f"only the workspace can be written): {text}"
            )


def _recipe(folder: Path) -> Recipe:
    if (folder / "docker-compose.yaml").exists():
        raise RecipeError(f"{folder}: several containers (docker-compose.yaml) cannot be had here")
    dockerfile = folder / "Dockerfile"
    if dockerfile.exists():
        return read_recipe(dockerfile.read_text(encoding="utf-8"))
    # Harbor's rule for an image without a Dockerfile: the folder's files lie where the task works.
    has_files = folder.is_dir() and any(folder.iterdir())
    return Recipe((Copy((".",), "/app/"),) if has_files else (), "/app", {}, ("/app",))


def _links(recipe: Recipe, workdir: str) -> dict[str, str]:
    """Absolute path to folder of the workspace, for every path at the root that the task needs to write."""
    roots = {PurePosixPath(path).parts[1] for path in (*_ALWAYS, *recipe.paths, workdir) if path.strip("/")}
    if refused := sorted(roots & _OF_THE_SYSTEM):
        raise RecipeError(f"the task writes to /{refused[0]}, which is read-only here")
    return {f"/{root}": root for root in sorted(roots - _OPEN)}
