"""Baleen: the open recipe of DeepSeek-V3.2 as one small library.

The names here are loaded when they are first used, so that `import baleen` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baleen import chat as chat
    from baleen.chat.tokenizer import Tokenizer
    from baleen.engine.engine import Engine as Engine
    from baleen.engine.params import SamplingParams as SamplingParams
    from baleen.model.checkpoint import load_model as load_model
    from baleen.model.convert import convert as convert

    load_tokenizer = Tokenizer.load

__all__ = ["Engine", "SamplingParams", "chat", "convert", "load_model", "load_tokenizer"]

_WHERE = {
    "chat": "baleen.chat",
    "convert": "baleen.model.convert:convert",
    "Engine": "baleen.engine.engine:Engine",
    "load_model": "baleen.model.checkpoint:load_model",
    "load_tokenizer": "baleen.chat.tokenizer:Tokenizer.load",
    "SamplingParams": "baleen.engine.params:SamplingParams",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'baleen' has no attribute {name!r}")
    module, _, path = _WHERE[name].partition(":")
    value: Any = import_module(module)
    for part in filter(None, path.split(".")):
        value = getattr(value, part)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
