"""What the conformance suite's scenarios ask of a server and an environment can have: tools that answer in text, a
schema that must arrive whole, and a task of the wanted name, whose opening is the wanted prompt."""

from baleen.agent.task import Task
from baleen.agent.tools import Toolbox
from baleen.chat.messages import Message, ToolSpec

TASK = Task(
    id="test_simple_prompt",
    family="general",
    domain="tools",
    difficulty=1,
    messages=(Message(role="user", content="This is a simple prompt for testing."),),
    environment="conformance",
    verifier="none",
)

WHOLE_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}


class Conformance:
    """Nothing to reach; only to be talked to."""

    def __init__(self, task):
        self.toolbox = Toolbox([test_simple_text, test_error_handling])

    async def reset(self, task):
        schema = {"name": "json_schema_2020_12_tool", "description": "Whole.", "parameters": WHOLE_SCHEMA}
        return list(task.messages), [*self.toolbox.specs, ToolSpec(function=schema)]

    async def step(self, calls):
        return [await self.toolbox.call(call) for call in calls]

    async def verify(self, episode):
        return {"outcome": None}

    async def close(self):
        pass


def test_simple_text() -> str:
    """Says something."""
    return "This is a simple text response for testing."


def test_error_handling() -> str:
    """Always fails."""
    raise ValueError("This tool intentionally returns an error for testing")
