"""What the tests say to a tool."""

import json

from baleen.chat.messages import FunctionCall, ToolCall


def tool_call(name, /, **arguments):
    return ToolCall(id=f"call-{name}", function=FunctionCall(name=name, arguments=json.dumps(arguments)))
