"""What a policy can call: plain functions as tools, and the ones that Baleen ships."""

from baleen.agent.tools.toolbox import Tool, Toolbox, tool_spec

__all__ = ["Tool", "Toolbox", "tool_spec"]
