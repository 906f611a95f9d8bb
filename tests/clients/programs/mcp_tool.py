"""The client of the SDK of the Model Context Protocol."""

import asyncio
import sys

from mcp import Client
from mcp.types import ImageContent, TextContent

from tests.clients.programs.report import action

NAME = "mcp"


async def run(url: str) -> None:
    async with Client(f"{url}/mcp") as client:
        with action(NAME, "tools") as result:
            result["tools"] = [tool.name for tool in (await client.list_tools()).tools]
        with action(NAME, "generate") as result:
            arguments = {"prompt": "a red apple", "num_inference_steps": 4, "seed": 7}
            answer = await client.call_tool("generate_image", arguments)
            result["images"] = [item.data for item in answer.content if isinstance(item, ImageContent)]
        with action(NAME, "error") as result:
            answer = await client.call_tool("generate_image", {"prompt": "a red apple", "n": 99})
            texts = [item.text for item in answer.content if isinstance(item, TextContent)]
            result["error"] = {"is_error": answer.is_error, "message": " ".join(texts), "param": "n"}


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
