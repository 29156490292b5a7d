"""What a program prints, as a reader who is no terminal sees it."""

from __future__ import annotations

import re

_CONTROL_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\|(?=\n)|$)"  # titles, links and other strings; none goes beyond its line
    r"|[ -/]*[0-~])"
)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def plain_text(text: str) -> str:
    """`text` without control sequences and control characters; of a line that was written over, what is left of it."""
    text = _CONTROL_SEQUENCE.sub("", text)
    if "\x08" in text:
        text = _backspaced(text)
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return _CONTROL_CHARACTER.sub("", "\n".join(lines))


def _backspaced(text: str) -> str:
    """Each backspace takes away the character before it, not beyond its line."""
    kept: list[str] = []
    for character in text:
        if character != "\x08":
            kept.append(character)
        elif kept and kept[-1] != "\n":
            kept.pop()
    return "".join(kept)


def middle_cut(text: str, characters: int, already: int = 0) -> str:
    """`text`, or its beginning and its end, half of `characters` each, and how much was between them. `already`: so
    many characters had been left out in the middle before."""
    if len(text) <= characters and not already:
        return text
    head, tail = text[: characters // 2], text[max(characters // 2, len(text) - characters // 2) :]
    left_out = len(text) - len(head) - len(tail) + already
    return f"{head}\n[... {left_out} characters left out ...]\n{tail}"
