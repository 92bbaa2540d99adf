"""An MCP server's tools in ToolEnv: a real server, its tools' own names and schemas."""

import asyncio
import sys
from pathlib import Path

import pytest

from agentrl.envs.errors import ToolFailure
from agentrl.envs.tools import ToolEnv, tool

pytest.importorskip("mcp")
SERVER = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]
TASK = {"question": "2 + 3?", "golden_answers": ["5"]}


@tool
def shout(text: str) -> str:
    """Louder."""
    return text.upper()


def call(name, arguments):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


@pytest.mark.slow
def test_its_tools_stand_beside_functions_and_are_called_at_the_same_time():
    env = ToolEnv(tools=[shout, {"mcp": SERVER, "tools": ["add", "hostile", "fail"]}])
    schemas = {s["function"]["name"]: s["function"] for s in env.schemas}
    assert list(schemas) == ["shout", "add", "hostile", "fail"]
    assert schemas["add"]["description"] == "The sum of two whole numbers."
    assert schemas["add"]["parameters"]["required"] == ["a", "b"]
    env.reset(options=TASK)
    both = call("add", '{"a": 2, "b": 3}') + call("shout", '{"text": "x"}')
    for said in (env.step(both)[0], asyncio.run(env.astep(both))[0]):
        assert said.index("5") < said.index("X")
    said, reward, ended, _, _ = env.step(call("hostile", "{}"))
    assert "<answer>" not in said and "42" in said and not reward and not ended  # data: its tags are defused
    assert "Error executing tool fail" in env.step(call("fail", "{}"))[0]
    assert env.step("5")[1] == 1.0


@pytest.mark.slow
def test_a_wrong_argument_is_the_servers_own_complaint_and_one_that_dies_is_a_failure():
    env = ToolEnv(tools=[{"mcp": SERVER, "timeout_s": 20}], max_turns=9)
    env.reset(options=TASK)
    assert "should be a valid integer" in env.step(call("add", '{"a": "two"}'))[0]
    with pytest.raises(ToolFailure):
        env.step(call("die", "{}"))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"server": SERVER}, r"a server has no 'server'"),
        ({"mpc": SERVER}, r"did you mean 'mcp'\?"),
        ({"tools": ["add"]}, r"a mapping names an MCP server"),
        ({"mcp": SERVER, "headers": {"A": "${B}"}}, r"headers are for a server behind a URL"),
        ({"mcp": SERVER, "env": {"KEY": "written out"}}, r"env.KEY is written out"),
    ],
)
def test_a_wrong_entry_says_what_is_wrong(entry, said):
    with pytest.raises(ValueError, match=said):
        ToolEnv(tools=[entry])


@pytest.mark.slow
def test_a_tool_that_the_server_does_not_have_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"the server has no tool 'ad'; did you mean 'add'\?; it has add, hostile"):
        ToolEnv(tools=[{"mcp": SERVER, "tools": ["ad"]}])
