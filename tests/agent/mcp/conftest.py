"""Makes this folder's worlds and programs importable beside the tests, and asyncio's complaints visible."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
