"""A client written with the official SDK's session; runs with its 1.x and its 2.x. Plays an episode and prints it.

python foreign_client.py ANSWER COINS URL            python foreign_client.py ANSWER COINS COMMAND [ARGUMENT ...]
"""

import asyncio
import importlib.metadata
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client


def transport(place):
    if place[0].startswith("http"):
        return streamable_http_client(place[0])
    return stdio_client(StdioServerParameters(command=place[0], args=place[1:], env=dict(os.environ)))


async def main(answer, coins, *place):
    async with transport(list(place)) as (reading, writing, *_), ClientSession(reading, writing) as session:
        await session.initialize()

        async def asked(what):
            return (await what).model_dump(mode="json", by_alias=True)

        tools = await asked(session.list_tools())
        prompts = await asked(session.list_prompts())
        prompt = await asked(session.get_prompt(prompts["prompts"][0]["name"]))
        results = [await asked(session.call_tool("add", {"coins": int(part)})) for part in coins.split("+")]
        results.append(await asked(session.call_tool("add", {"coin": 1})))
        results.append(await asked(session.call_tool("subtract", {})))
        templates = await asked(session.list_resource_templates())
        address = f"episode://reward?answer={answer}"
        reward = await session.read_resource(address)
        print(
            json.dumps(
                {
                    "version": importlib.metadata.version("mcp"),
                    "tools": [tool["name"] for tool in tools["tools"]],
                    "prompt": [message["content"]["text"] for message in prompt["messages"]],
                    "results": [[result["isError"], result["content"][0]["text"]] for result in results],
                    "templates": [template["uriTemplate"] for template in templates["resourceTemplates"]],
                    "reward": json.loads(reward.contents[0].text),
                }
            )
        )


asyncio.run(main(*sys.argv[1:]))
