"""The thinking rule: reasoning is dropped only when a new user or developer message arrives.

Tool results keep it, and calls and results always stay ("Thinking in tool-use", arXiv 2512.02556). So a turn's
reasoning is in the context exactly until the next user message, and a conversation with several of them was served as
several contexts: `training_views` gives these back, each turn being trained in the context in which it was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

from baleen.chat.messages import Message


def training_views(messages: Sequence[Message], thinking: bool = True) -> list[list[Message]]:
    """The contexts that were served, as prefixes of `messages`; each ends with an assistant message.

    In thinking mode a view ends before each new user message; `segments` marks as sampled only the turns after a view's
    last user message, so over all views every turn is trained once. Without thinking nothing is ever dropped, so one
    view holds all turns.
    """
    if thinking:
        ends = [index for index, message in enumerate(messages) if _opens(message)] + [len(messages)]
    else:
        ends = [len(messages)]
    views = []
    answered = 0
    for end in ends:
        last = max((index for index in range(answered, end) if messages[index].role == "assistant"), default=None)
        if last is not None:
            views.append(list(messages[: last + 1]))
        answered = end
    return views


def last_user_index(messages: Sequence[Message]) -> int:
    """The index of the last user or developer message, -1 when there is none."""
    return max((index for index, message in enumerate(messages) if _opens(message)), default=-1)


def reasoning_is_kept(index: int, last_user: int, thinking: bool) -> bool:
    """Whether the assistant message at `index` still shows its reasoning."""
    return thinking and index > last_user


def _opens(message: Message) -> bool:
    return message.role in ("user", "developer")
