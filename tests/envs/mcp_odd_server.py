"""Real MCP servers that behave oddly, for the tests: `mcp_odd_server.py pages|circle|contents|key|changes [FILE]`."""

import asyncio
import os
import sys

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

KIND, FILE = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
SCHEMA = {"type": "object", "properties": {}}
CONTENTS = {
    "structured": types.CallToolResult(content=[], structured_content={"rows": [1, "é"]}),
    "both": types.CallToolResult(content=[types.TextContent(text="one")], structured_content={"n": 1}),
    "resource": types.CallToolResult(
        content=[types.EmbeddedResource(resource=types.TextResourceContents(uri="file:///a.txt", text="a page"))]
    ),
    "blob": types.CallToolResult(
        content=[
            types.EmbeddedResource(
                resource=types.BlobResourceContents(uri="file:///a.bin", mime_type="application/zip", blob="AAAA")
            )
        ]
    ),
    "link": types.CallToolResult(
        content=[types.ResourceLink(name="report", uri="https://example.org/r", description="of 2026")]
    ),
    "image": types.CallToolResult(content=[types.ImageContent(data="AAAA", mime_type="image/png")]),
    "nothing": types.CallToolResult(content=[]),
}


def tools(*names):
    return [types.Tool(name=n, description=f"the tool {n}", input_schema=SCHEMA) for n in names]


async def list_tools(ctx, params):
    cursor = params.cursor if params else None
    if KIND == "pages":
        page = int(cursor or 0)
        return types.ListToolsResult(tools=tools(f"t{page}"), next_cursor=str(page + 1) if page < 2 else None)
    if KIND == "circle":
        return types.ListToolsResult(tools=tools("a"), next_cursor="again")
    if KIND == "changes":  # another tool each time it is started
        with open(FILE, "a+") as f:
            f.seek(0)
            started = len(f.read())
            f.write("x")
        return types.ListToolsResult(tools=tools("die", f"t{started}"))
    return types.ListToolsResult(tools=tools(*CONTENTS, "key"))


async def call_tool(ctx, params):
    if params.name == "die":
        os._exit(3)
    if params.name == "key":
        return types.CallToolResult(content=[types.TextContent(text=os.environ.get("API_KEY", "unset"))])
    return CONTENTS[params.name]


async def main():
    server = Server("odd", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    asyncio.run(main())
