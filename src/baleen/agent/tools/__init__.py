"""What a policy can call: plain functions as tools, and the ones that Baleen ships."""

from baleen.agent.tools.results import Finished, Image, ToolResult
from baleen.agent.tools.submit import submit_tool
from baleen.agent.tools.toolbox import Tool, Toolbox, tool_spec

__all__ = ["Finished", "Image", "Tool", "ToolResult", "Toolbox", "submit_tool", "tool_spec"]
