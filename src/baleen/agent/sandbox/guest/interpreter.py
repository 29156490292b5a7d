"""Python without a start: source runs in a fork of the server, as a fresh `__main__`.

Where the host lends tools, the program finds an object `tools`; `tools.name(argument=...)` sends one typed JSON message
through a socket and waits for the answer. That socket is all of the host that a program can reach.
"""

from __future__ import annotations

import io
import os
import sys

from baleen.agent.sandbox.guest.frames import LENGTH_BYTES, length_at, length_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CHANNEL = 3
"""The descriptor of the tool channel in a program."""

LONGEST_MESSAGE = 1 << 20
_PRELOADED = ("ast", "random", "json", "traceback")


class ToolError(Exception):
    """A tool that could not do what was asked; the text says why."""

    __module__ = "__main__"  # as the program sees it


class Tools:
    """The tools that the host lends: `tools.name(argument=value)`."""

    def __init__(self, names: list[str]) -> None:
        import threading

        self._names = names
        self._turn = threading.Lock()

    def __dir__(self) -> list[str]:
        return list(self._names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(**arguments: Any) -> Any:
            return self._call(name, arguments)

        call.__name__ = call.__qualname__ = name
        return call

    def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        import json

        message = json.dumps({"name": name, "arguments": arguments}).encode()
        if len(message) > LONGEST_MESSAGE:
            raise ToolError(f"{name}: arguments of {len(message)} bytes; at most {LONGEST_MESSAGE} can be sent")
        with self._turn:
            try:
                data = memoryview(length_bytes(message) + message)
                while data:
                    data = data[os.write(CHANNEL, data) :]
                answer = json.loads(_exactly(length_at(_exactly(LENGTH_BYTES))))
            except OSError as error:
                raise ToolError("the tools are gone") from error
        if "error" in answer:
            raise ToolError(answer["error"])
        return answer["value"]


def _exactly(length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = os.read(CHANNEL, min(length - len(data), 1 << 20))
        if not piece:
            raise OSError("closed")
        data += piece
    return bytes(data)


def preload(busy: Callable[[], bool]) -> None:
    """Imports what every program needs, so that a fork finds it there; stops when there is something else to do."""
    register, os.register_at_fork = os.register_at_fork, lambda **_: None
    try:
        for name in _PRELOADED:
            if busy():
                return
            __import__(name)  # `random` would draw a new seed in every fork; programs get theirs in `interpret`
    finally:
        os.register_at_fork = register
    import ast

    compile(ast.parse("0"), "<python>", "exec")  # the first time makes the types of all nodes, a millisecond


def interpret(source: str, tool_names: list[str] | None) -> None:
    """Runs `source` and ends the process; a last expression shows its value when nothing else was printed."""
    import ast
    import builtins
    import random
    import traceback

    os.register_at_fork(after_in_child=random.seed)
    random.seed(0)  # forks would otherwise share a state that differs from boot to boot
    printed = _open_streams()
    sys.argv = ["python"]
    # As `python -c` has it; the server itself must not import what a program wrote.
    sys.path[:0] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)  # what the site module would have added
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    if tool_names is not None:
        module.tools = Tools(tool_names)  # type: ignore[attr-defined]
        module.ToolError = ToolError  # type: ignore[attr-defined]
    status = 0
    try:
        tree = ast.parse(source, "<python>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<python>", "exec"), module.__dict__)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<python>", "eval"), module.__dict__)
            if value is not None and not printed.used:
                print(repr(value))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if not isinstance(stop.code, (int, type(None))):
            print(stop.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 - whatever the program raised is its result
        status = 1
        print("".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1], file=sys.stderr)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)


class _Printed(io.TextIOWrapper):
    """Standard output that remembers whether anything was written."""

    used = False

    def write(self, text: str, /) -> int:
        self.used = self.used or bool(text)
        return super().write(text)


def _open_streams() -> _Printed:
    """Standard streams of its own for this process."""
    printed = _Printed(io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="replace", write_through=False)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = printed
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="replace")
    return printed
