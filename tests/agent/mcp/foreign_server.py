"""A server written with the official SDK's own decorators; runs with its 1.x and its 2.x.

python foreign_server.py stdio      python foreign_server.py http PORT
"""

import os
import sys
import time
from typing import Annotated

try:
    from mcp.server.mcpserver import Image, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    server = MCPServer("foreign")
except ImportError:
    from mcp.server.fastmcp import FastMCP, Image
    from mcp.server.fastmcp.exceptions import ToolError

    server = FastMCP("foreign", port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000)

from pydantic import BaseModel, Field

held = []


class Place(BaseModel):
    title: str
    floor: int


@server.tool()
def echo(text: Annotated[str, Field(description="what to say")], times: int = 1) -> str:
    """Says it again."""
    return text * times


@server.tool()
def place(title: str) -> Place:
    """Where it is."""
    return Place(title=title, floor=3)


@server.tool()
def picture() -> list:
    """A picture and a word."""
    return ["a dot", Image(data=b"\x89PNG.........", format="png")]


@server.tool()
def refuse() -> str:
    """Always fails."""
    raise ToolError("not on a Sunday")


@server.tool()
def long(characters: int) -> str:
    """Talks."""
    return "x" * characters


@server.tool()
async def hang(seconds: float) -> str:
    """Takes its time."""
    import anyio

    await anyio.sleep(seconds)
    return "at last"


@server.tool()
def die() -> str:
    """Ends the process."""
    print("I am dying of shame", file=sys.stderr, flush=True)
    os._exit(3)


@server.tool()
def push(item: str) -> str:
    """Keeps it in the process."""
    held.append(item)
    time.sleep(0.01)
    return ",".join(held)


@server.tool(name="odd.name/with slash")
def odd() -> str:
    """Has a name that model interfaces refuse."""
    return "odd"


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run(transport="stdio")
    else:
        more = {"port": int(sys.argv[2])} if type(server).__name__ == "MCPServer" else {}
        server.run(transport="streamable-http", **more)
