"""Our sandbox as Harbor's environment: `harbor run --environment-import-path` with this module's `BaleenEnvironment`.

    harbor run -p TASK -a oracle --environment-import-path baleen.agent.adapters.harbor_environment:BaleenEnvironment

No image is built and no daemon is needed: see `harbor_box.py` for what of a Dockerfile can be had so. There is never a
network; a task that allows one is refused unless `--ek offline=true` says that it can do without. Needs `harbor` 0.26.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harbor.environments.base import BaseEnvironment, ExecResult
from harbor.environments.capabilities import EnvironmentCapabilities
from harbor.models.task.config import NetworkMode, NetworkPolicy

from baleen.agent.adapters.harbor import limits_of
from baleen.agent.adapters.harbor_box import HarborBox

_DAY = 86400.0
"""For commands without a timeout: Harbor bounds the phase that they belong to."""


class BaleenEnvironment(BaseEnvironment):
    """One trial's box. `user` is not obeyed: everything in it runs as the same unprivileged user."""

    def __init__(self, *args: Any, offline: bool | str = False, **options: Any) -> None:
        self._offline = str(offline).lower() in ("true", "1", "yes")
        super().__init__(*args, **options)

    @staticmethod
    def type() -> str:
        """Its name in Harbor's records."""
        return "baleen"

    @property
    def capabilities(self) -> EnvironmentCapabilities:
        """It can be without a network, and nothing else."""
        return EnvironmentCapabilities(disable_internet=True)

    def validate_network_policy_support(self, network_policy: NetworkPolicy | None = None) -> None:
        """Refuses a task that is promised a network."""
        super().validate_network_policy_support(network_policy)
        policy = network_policy or self.network_policy
        if policy.network_mode == NetworkMode.PUBLIC and not self._offline:
            raise ValueError(
                "the baleen environment has no network and this task allows one; set network_mode = 'no-network' in "
                "its task.toml, or pass --ek offline=true if it can do without"
            )

    async def start(self, force_build: bool) -> None:
        """Starts and builds the box; there is nothing to build beforehand, so `force_build` changes nothing."""
        await self._box.start()
        await self.ensure_dirs(self._mount_targets(writable_only=True))

    async def stop(self, delete: bool) -> None:
        """Ends the box; nothing of it stays, whatever `delete` says."""
        await self._box.stop()

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        """Copies a file of this machine into the box."""
        await self._box.upload(Path(source_path), target_path)

    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        """Copies what is in a folder of this machine into a folder of the box."""
        await self._box.upload(Path(source_dir), target_dir)

    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        """Copies a file of the box to this machine. Raises `FileNotFoundError` and other `OSError`s."""
        content = await self._box.sandbox.read(source_path)
        Path(target_path).parent.mkdir(parents=True, exist_ok=True)
        Path(target_path).write_bytes(content)

    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        """Copies what is in a folder of the box into a folder of this machine. Raises `OSError`."""
        await self._box.sandbox.read_folder(source_dir, Path(target_dir))

    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> ExecResult:
        """Runs a command in bash. Raises `RuntimeError` when it takes longer than `timeout_sec`, as Harbor's own
        environments do."""
        folder = cwd or self.task_env_config.workdir
        result = await self._box.run(
            command, timeout=timeout_sec or _DAY, folder=folder, variables=self._merge_env(env)
        )
        if result.timed_out:
            raise RuntimeError(f"Command timed out after {timeout_sec} seconds")
        return ExecResult(stdout=result.stdout, stderr=result.stderr, return_code=result.exit_code)

    def _validate_definition(self) -> None:
        """Reads the definition; raises `RecipeError` where it cannot be followed here."""
        self._box = HarborBox(
            self.environment_dir,
            limits_of(self.task_env_config.memory_mb, self.task_env_config.storage_mb),
            workdir=self.task_env_config.workdir,
        )
