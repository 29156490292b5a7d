"""Where other projects' interpreters are (`make peers`), and how a test runs one."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FIXTURES = Path(__file__).parent / "fixtures"
PEERS = Path(os.environ.get("BALEEN_PEERS", ROOT / ".venv-peers"))


def peer(name):
    """The interpreter of a peer's environment. Skips the test where it is not installed."""
    python = PEERS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not installed in {PEERS}; run `make peers`")
    return python


def run_peer(name, arguments, *, folder, timeout=580, check=True, **environment):
    """Runs the peer's interpreter in `folder` with our source and the fixtures importable."""
    python = peer(name)
    path = os.pathsep.join([str(ROOT / "src"), str(FIXTURES)])
    bin_folder = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON"))}
    environment = {**kept, "PYTHONPATH": path, "PATH": bin_folder, **environment}
    done = subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{name} {arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
