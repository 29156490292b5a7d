"""Messages to tokens and back: the V3.2 text format, its parser, the thinking rule and the tokenizer."""

from baleen.chat.calls import CallDelta, Fault
from baleen.chat.conversation import ChatFormatError
from baleen.chat.encoding import Segment, encode, segments
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec
from baleen.chat.parser import Delta, ParsedMessage, StreamParser, parse
from baleen.chat.retention import training_views
from baleen.chat.text_stream import TextStream
from baleen.chat.tokenizer import Tokenizer, TokenizerError

__all__ = [
    "CallDelta",
    "ChatFormatError",
    "Delta",
    "Fault",
    "FunctionCall",
    "Message",
    "ParsedMessage",
    "Segment",
    "StreamParser",
    "TextStream",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "ToolSpec",
    "encode",
    "parse",
    "segments",
    "training_views",
]
