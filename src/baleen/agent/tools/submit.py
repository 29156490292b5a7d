"""`submit(answer)`: ends an episode with an answer that a verifier can read.

    toolbox = Toolbox([search, submit_tool(int)]);  ...;  toolbox.finished.answer

An answer that does not have the asked type, or that `check` refuses, comes back as a mistake to be mended, and the
episode goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baleen.agent.tools.results import Finished
from baleen.agent.tools.signature import Tool


def submit_tool(kind: Any = str, check: Callable[[Any], None] | None = None) -> Tool:
    """The tool for answers of type `kind`: whatever pydantic knows, e.g. `int` or a dataclass. `check(answer)` may
    refuse an answer by raising `ValueError` with what is wrong; it must not tell whether the answer is right."""

    async def submit(answer: Any) -> Finished:
        """Submits the final answer; nothing can be done after it."""
        if check is not None:
            check(answer)
        return Finished(answer)

    submit.__annotations__["answer"] = kind
    return submit
