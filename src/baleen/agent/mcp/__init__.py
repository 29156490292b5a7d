"""The Model Context Protocol, both ways: any MCP server as tools, any environment here as an MCP server.

`client` and `environment` bring servers in; `server` lets clients out of this house act in an environment. All of it
stands on the official SDK, whose 2.x shares hardly a name with its 1.x. On the wire both are spoken to.
"""

from __future__ import annotations

import importlib.metadata


class McpMissing(ImportError):
    """The SDK is not installed, or too old."""


def _installed() -> str:
    try:
        return importlib.metadata.version("mcp")
    except importlib.metadata.PackageNotFoundError:
        return "none"


if not _installed().startswith("2."):
    raise McpMissing(f"MCP needs the package mcp 2.x, and finds {_installed()}: pip install 'baleen[agent]'")
