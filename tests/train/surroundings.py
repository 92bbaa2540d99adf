"""Environments for runs whose surroundings fail: `Searching-v0`, `Adding-v0` and `Judged-v0` have a scripted agent and
a real server, `Faulty-v0` a fault to order."""

import hashlib
import os
from pathlib import Path

import gymnasium
import httpx

from agentrl.envs.errors import ToolFailure
from agentrl.envs.mcp import McpEnv
from agentrl.envs.search import SearchEnv
from agentrl.envs.spaces import AnyText


class Searching(SearchEnv):
    """One search, whatever the model says, then an answer that is right or wrong by the length of its text."""

    async def astep(self, action):
        if self._turn < 1:
            return await super().astep("<search> born </search>")
        return await super().astep(f"<answer> {next(iter(self._golden)) if right(action) else 'nobody'} </answer>")


def right(action):
    """One response of two is right, by its text alone."""
    return int(hashlib.md5(action.encode()).hexdigest(), 16) % 2


class Adding(McpEnv):
    """One call of the tool `add` of an MCP server, whatever the model says, then an answer."""

    async def astep(self, action):
        if self._turn < 1:
            return await super().astep('<tool>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool>')
        return await super().astep(f"<answer> {next(iter(self._golden)) if right(action) else 'nothing'} </answer>")


class Judged(gymnasium.Env):
    """One turn, played by a server over HTTP: `url`/reset has the observation, `url`/step the reward."""

    stop_strings = ()

    def __init__(self, url):
        self.observation_space = self.action_space = AnyText()
        self.client = httpx.Client(base_url=url, timeout=1.0, trust_env=False)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        reply = self.client.post("/reset", json={"question": (options or {}).get("question", "q")})
        return reply.raise_for_status().json()["observation"], {}

    def step(self, action):
        reply = self.client.post("/step", json={"action": action}).raise_for_status().json()
        return "", reply["reward"], True, False, {}


class Faulty(gymnasium.Env):
    """One turn. `fault` is the path of a file: while it is there, its text says what goes wrong.

    `raise`: an exception of the environment; `down`: a tool that is away; anything else is evaluated to be the reward.
    """

    stop_strings = ()

    def __init__(self, fault, slow=False):
        self.observation_space = self.action_space = AnyText()
        self.fault, self.slow = Path(fault), slow

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return str((options or {}).get("question", "q")), {}

    def step(self, action):
        wrong = self.fault.read_text() if self.fault.exists() else ""
        if wrong == "raise":
            raise ZeroDivisionError("the environment's own bug")
        if wrong == "down":
            raise ToolFailure("the judge answered 503")
        if wrong == "kill":
            os.kill(os.getpid(), 9)
        if wrong:
            return "", eval(wrong), True, False, {}
        return "", float(right(action)), True, False, {}


for _class in (Searching, Adding, Judged, Faulty):
    gymnasium.register(f"{_class.__name__}-v0", entry_point=f"tests.train.surroundings:{_class.__name__}")


def serve():
    """The server of `Judged-v0`, on any free port or the one that is given; its first line has the port."""
    import json
    import sys
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = {
                "/reset": lambda: {"observation": given["question"]},
                "/step": lambda: {"reward": right(given["action"])},
            }
            body = json.dumps(known[self.path]()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    ThreadingHTTPServer.request_queue_size = 64  # all episodes of a step come at once
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
