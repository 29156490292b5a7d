"""Prompts out of the tokens that were really served: text is never tokenised a second time.

A turn that follows tool results extends the exact tokens of the turn before, its prompt and what was sampled. So an
episode stays one sequence for the prefix cache and for training. Where the context was rewritten (a new user message,
dropped messages) it is written anew.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Sequence

from baleen.agent.policy import Completion, FinishReason
from baleen.chat.encoding import segments
from baleen.chat.messages import Message, ToolSpec
from baleen.chat.parser import parse
from baleen.chat.tokenizer import Tokenizer
from baleen.engine.trace import Trace

REMEMBERED = 4096
"""Turns that may still be extended; more episodes than that at once lose the exact prefix of the oldest."""


class ExactPrompts:
    """Writes prompts and reads turns for a policy that samples tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._served: OrderedDict[int, tuple[tuple[Message, ...], tuple[int, ...]]] = OrderedDict()

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """The tokens that the next turn is sampled after."""
        pieces = segments(list(messages), list(tools), thinking)
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
        if last is not None and all(message.role == "tool" for message in messages[last + 1 :]):
            before, tokens = self._served.get(id(messages[last]), ((), ()))
            # A context manager may have dropped messages before the last turn: then its tokens are no prefix.
            unchanged = len(before) == last + 1 and all(map(operator.is_, before, messages))
            if unchanged and any(piece.sampled for piece in pieces):
                tail = len(pieces) - next(i for i, piece in enumerate(reversed(pieces)) if piece.sampled)
                ids, _ = self.tokenizer.encode_segments(pieces[tail:])
                return [*tokens, *ids]
        return self.tokenizer.encode_segments(pieces)[0]

    def turn(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        thinking: bool,
        *,
        prompt: Sequence[int],
        sampled: Sequence[int],
        trace: Trace | None,
        was_cut: bool,
    ) -> Completion:
        """What was sampled after `messages` as a turn, remembered for the next prompt; calls get ids, because results
        are matched by them."""
        parsed = parse(self.tokenizer.decode(list(sampled)), thinking=thinking, tools=list(tools))
        message = parsed.to_message()
        calls = [call.model_copy(update={"id": f"call_{len(prompt)}_{i}"}) for i, call in enumerate(message.tool_calls)]
        reason: FinishReason = "length" if was_cut else "tool_calls" if calls else "stop"
        completion = Completion(
            message=message.model_copy(update={"tool_calls": calls}),
            prompt_tokens=tuple(prompt),
            sampled_tokens=tuple(sampled),
            trace=trace,
            finish_reason=reason,
            faults=tuple(str(fault) for fault in parsed.faults),
        )
        self._served[id(completion.message)] = ((*messages, completion.message), (*prompt, *sampled))
        if len(self._served) > REMEMBERED:
            self._served.popitem(last=False)
        return completion

    def forget(self) -> None:
        """No turn that was served will be extended any more."""
        self._served.clear()


def no_room(prompt: Sequence[int] = ()) -> Completion:
    """The turn of a prompt that leaves no room for one: empty and truncated."""
    return Completion(Message(role="assistant", content=""), tuple(prompt), (), None, "length", ("no room",))
