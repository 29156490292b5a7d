"""A server of 2026 that has forgotten the handshake: it refuses `initialize` and serves sessionless requests."""

from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import jsonrpc

server = MCPServer("modern")


@server.tool()
def era(context: Context) -> str:
    """The protocol that this call came in."""
    return context.request_context.protocol_version


async def no_handshake(context, call_next):
    if context.method == "initialize":
        data = {"supported": ["2026-07-28"], "requested": "2025-11-25"}
        raise MCPError(jsonrpc.UNSUPPORTED_PROTOCOL_VERSION, "no handshake here", data)
    return await call_next(context)


if __name__ == "__main__":
    server._lowlevel_server.middleware.append(no_handshake)
    server.run(transport="stdio")
