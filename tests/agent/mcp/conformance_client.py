"""The client that the conformance suite starts: opens a session at the URL it is given and does what the scenario
wants a client to do, through `McpTools`.

python conformance_client.py URL          (the scenario's name is in MCP_CONFORMANCE_SCENARIO)
"""

import asyncio
import os
import sys

from calls import tool_call

from baleen.agent.mcp.client import McpTools

WANTED = {
    "tools_call": [tool_call("add_numbers", a=5, b=3)],
    "sse-retry": [tool_call("test_reconnection")],
    "elicitation-sep1034-client-defaults": [tool_call("test_client_elicitation_defaults")],
}


async def main(url):
    async with McpTools.http(url) as tools:
        for call in WANTED.get(os.environ["MCP_CONFORMANCE_SCENARIO"], []):
            print((await tools.call(call)).content)


asyncio.run(main(sys.argv[1]))
