"""A server over a scripted engine as `serve` runs it, in a process that a test may signal."""

from __future__ import annotations

import sys
from pathlib import Path

from scripted_service import ScriptedService, always

from baleen.chat import Tokenizer
from baleen.engine.params import EngineOptions
from baleen.server import serve
from baleen.server.settings import ServerSettings

tokenizer = Tokenizer.load(sys.argv[1])
settings = ServerSettings(port=0, drain_seconds=float(sys.argv[2]))
scripted = ScriptedService(tokenizer, always("</think>" + "Hello, world " * 40), delay=0.02)


class Started:
    """Stands where the engine's process would be started."""

    @classmethod
    async def start(cls, path, options, *, max_waiting):
        return scripted


serve.Service = Started
serve.serve(Path(sys.argv[1]), settings, EngineOptions())
print("ended", scripted.closed, flush=True)
