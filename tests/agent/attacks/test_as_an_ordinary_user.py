"""All attacks once more without root's powers: as root, the other files of this folder run again under another user."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

USER = 54321
FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
AT_LEAST = 120

# The interpreter may lie in root's home: the private mount namespace shows that folder of it and nothing else.
SCRIPT = """
set -e
prefix=$1 hidden=$2 aside=$3; shift 3
if [ -n "$hidden" ]; then
    mount --bind "$prefix" "$aside"
    mount -t tmpfs -o mode=755 tmpfs "$hidden"
    mkdir -p "$prefix"
    mount --move "$aside" "$prefix"
fi
exec "$@"
"""


def hidden_folder(path):
    """The highest folder above `path` that others may not enter; empty when there is none."""
    closed = [str(each) for each in (*path.parents, path) if not each.stat().st_mode & 0o001]
    return min(closed, key=len, default="")


@pytest.mark.skipif(os.getuid() != 0, reason="these tests run as an ordinary user already")
@pytest.mark.slow
def test_every_attack_fails_as_an_ordinary_user_too(tmp_path):
    for program in ("setpriv", "unshare", "mount"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    prefix = Path(sys.base_prefix)
    if hidden_folder(ROOT) or hidden_folder(Path(sys.prefix)):
        pytest.skip(f"an ordinary user cannot read {ROOT}")
    home = Path(f"/tmp/baleen-user-{os.getpid()}")
    home.mkdir()
    os.chown(home, USER, USER)
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    # How fast the neighbours stay is measured once, as whoever runs these tests.
    left_out = {Path(__file__).name, "test_neighbours.py"}
    tests = [str(path) for path in FOLDER.glob("test_*.py") if path.name not in left_out]
    pytest_command = [sys.executable, "-m", "pytest"]
    options = ["-p", "no:cacheprovider", f"--basetemp={home}/pytest", "-W", "ignore"]
    namespace = ["unshare", "--mount", "--propagation=private", "sh", "-c", SCRIPT, "sh"]
    try:
        done = subprocess.run(
            [*namespace, str(prefix), hidden_folder(prefix), str(tmp_path), *drop, *pytest_command, *options, *tests],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1200,
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", done.stdout).group(1))
    assert passed >= AT_LEAST, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
