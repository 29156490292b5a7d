"""Tests share `tests/tiny.py` and run offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
# A busy machine is no fault of the code: no example has a deadline.
settings.register_profile("baleen", deadline=None)
settings.load_profile("baleen")
