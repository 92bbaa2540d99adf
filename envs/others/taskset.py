"""A verifiers taskset behind the host's pipe: runs in the interpreter that has verifiers (written for 0.4.0).

verifiers runs the episode with its own environment, tool servers and rewards. It asks the policy at an address in
OpenAI's manner, which is this process: a request is our observation, the action is its answer. The seat's program is a
chat loop in this process (`Loop`), so that nothing is installed for a rollout. Tool calls are read as Hermes has them.

Left out: several agents, containers, token ids, and what else a harness of verifiers' own brings (its shell, files).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Coroutine, Mapping
from types import ModuleType
from typing import Any

HARNESS = "agentrl_host_loop"  # the name under which verifiers finds our chat loop
CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
MAX_TASKS = 100_000  # of a taskset that may have no end
HOW = 'To call a tool, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.\nTools:\n'


class Verifiers:
    """One session: the episode that it plays, and its conversation."""

    _world: World | None = None
    _lock = threading.Lock()

    def __init__(self, env: str, arguments: Mapping[str, Any]) -> None:
        with self._lock:
            if Verifiers._world is None:
                Verifiers._world = World(env, arguments)
        self._number: int | None = None

    def reset(self, seed: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """Begin the task of the row's `index`, or of the seed."""
        self.close()
        index = row.get("index")
        self._number, seen = self.world.run(self.world.begin(seed if index is None else index, index is None))
        return seen

    def step(self, action: str) -> dict[str, Any]:
        """Answer the policy's pending request; the next one, or the end with its reward."""
        return self.world.run(self.world.answer(self._number, action))

    def tasks(self, split: str) -> list[dict[str, Any]]:
        """Rows of the taskset."""
        return [
            {
                "id": str(t.data.id or t.data.name or i),
                "question": t.data.prompt_text.strip() or f"task {i}",
                "golden_answers": ["(the environment grades)"],
                "index": i,
            }
            for i, t in enumerate(self.world.tasks)
        ]

    def close(self) -> None:
        """Give the episode up."""
        number, self._number = self._number, None
        if number is not None:
            self.world.run(self.world.leave(number))

    @property
    def world(self) -> World:
        """What all sessions share."""
        assert self._world is not None
        return self._world


class Episode:
    """One episode of verifiers', seen from the policy."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.said: asyncio.Queue[str] = asyncio.Queue()
        self.run: asyncio.Task[Any] | None = None
        self.read = 0  # messages that the policy has seen

    async def next(self) -> dict[str, Any]:
        """The next request as an observation, or the end."""
        assert self.run is not None
        asking = asyncio.ensure_future(self.asked.get())
        await asyncio.wait((asking, self.run), return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return self._observation(asking.result())
        asking.cancel()
        return ended(self.run.result())

    def _observation(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = body.get("messages") or []
        new = [m for m in messages[self.read :] if m.get("role") != "assistant"]
        texts = [content(m) for m in new]
        if self.read == 0 and body.get("tools"):
            texts.insert(0, HOW + "\n".join(json.dumps(t["function"]) for t in body["tools"]))
        self.read = len(messages)
        info = {"roles": [m.get("role") for m in new]}
        return {"text": "\n".join(texts), "reward": 0.0, "terminated": False, "truncated": False, "info": info}


def ended(episode: Any) -> dict[str, Any]:
    """The end of an episode, with its rewards and metrics. RuntimeError where it failed: then there is no reward."""
    errors = [*episode.errors, *(e for t in episode.traces for e in getattr(t, "errors", ()))]
    if not episode.ok or not episode.traces:
        said = f"{errors[0].type}: {errors[0].message}" if errors else "it ended without a trace"
        raise RuntimeError(f"the episode failed: {said[-1500:]}")
    trace = episode.traces[0]
    rewards = {name: r.value for name, r in trace.rewards.items() if r is not None}
    info = {"rewards": rewards, "metrics": dict(trace.metrics), "stop": trace.stop_condition}
    return {"text": "", "reward": float(trace.reward), "terminated": True, "truncated": False, "info": info}


def content(message: Mapping[str, Any]) -> str:
    """The text of a message; what is no text is named."""
    said = message.get("content")
    if isinstance(said, str):
        return said
    return "\n".join(p.get("text", f"[{p.get('type')}: not shown]") for p in said or () if isinstance(p, Mapping))


class World:
    """The taskset, its environment while it serves, and the policy's address, on an event loop of their own."""

    def __init__(self, taskset: str, arguments: Mapping[str, Any]) -> None:
        import verifiers.v1 as vf
        from verifiers.v1.utils.loaders import load_environment, resolve_env_config

        sys.modules[HARNESS] = harness(vf)
        config = dict(arguments)
        config["taskset"] = {"id": taskset, **dict(config.pop("taskset", {}))}
        local = {"harness": {"id": HARNESS}, "runtime": {"type": "subprocess"}}
        config["agent"] = {**local, **dict(config.pop("agent", {}))}
        self.env = load_environment(resolve_env_config(config))
        bounded = self.env.taskset if self.env.taskset.bounded else self.env.taskset.take(MAX_TASKS)
        self.tasks = list(bounded)
        if not self.tasks:
            raise ValueError(f"the taskset {taskset!r} has no tasks")
        self._episodes: dict[int, Episode] = {}
        self._numbers = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._forever, daemon=True).start()
        self._address = self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _forever(self) -> None:
        try:
            self._loop.run_forever()
        except BaseException as error:  # verifiers exits where it wants an account
            print(error, file=sys.stderr, flush=True)
            os._exit(1)

    async def begin(self, index: Any, wrap: bool) -> tuple[int, dict[str, Any]]:
        """A new episode's number and first observation."""
        import verifiers.v1 as vf
        from verifiers.v1.configs.client import EvalClientConfig

        if wrap:
            index %= len(self.tasks)
        if not isinstance(index, int) or not 0 <= index < len(self.tasks):
            raise ValueError(f"index is {index!r}; the taskset has {len(self.tasks)} tasks, from 0")
        self._numbers += 1
        number = self._numbers
        episode = self._episodes[number] = Episode()
        client = EvalClientConfig(base_url=self._address, api_key_var="AGENTRL_HOST_NO_KEY")
        context = vf.ModelContext(model=f"episode-{number}", client=client)
        episode.run = asyncio.ensure_future(self.env.run_episode(self.tasks[index], context))
        seen = await episode.next()
        if seen["terminated"]:
            raise RuntimeError("the episode ended before the policy was asked")
        return number, seen

    async def answer(self, number: int | None, action: str) -> dict[str, Any]:
        """The next observation after an action."""
        episode = self._episodes[number or 0]
        await episode.said.put(action)
        try:
            seen = await episode.next()
        except BaseException:
            self._episodes.pop(number or 0, None)
            raise
        if seen["terminated"]:
            self._episodes.pop(number or 0, None)
        return seen

    async def leave(self, number: int) -> None:
        """Cancel an episode that is left early."""
        episode = self._episodes.pop(number, None)
        if episode is not None and episode.run is not None:
            episode.run.cancel()

    async def _start(self) -> str:
        """Serve the environment's resources and the policy's address as long as the process lives."""
        import uvicorn
        from starlette.applications import Starlette
        from starlette.routing import Route

        os.environ["AGENTRL_HOST_NO_KEY"] = "none"
        app = Starlette(routes=[Route("/v1/chat/completions", self._completion, methods=["POST"])])
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

        class Server(uvicorn.Server):
            def capture_signals(self) -> Any:  # the thread is not the main one
                return contextlib.nullcontext()

        server = Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self._serving = asyncio.ensure_future(server.serve([listener]))
        self._resources = self.env.serving()
        await self._resources.__aenter__()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    async def _completion(self, request: Any) -> Any:
        """A request of the policy: it waits for the action."""
        from starlette.responses import JSONResponse

        body = await request.json()
        episode = self._episodes.get(int(str(body.get("model")).rpartition("-")[2] or 0))
        if episode is None:
            return JSONResponse({"error": {"message": "this episode is over"}}, 410)
        await episode.asked.put(body)
        return JSONResponse(completion(await episode.said.get(), body))


def completion(text: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion of an action; its tool calls where the request offers tools and the JSON can be read."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    calls: list[dict[str, Any]] = []
    for found in CALL.findall(text) if body.get("tools") else ():
        try:
            call = json.loads(found)
            function = {"name": str(call["name"]), "arguments": json.dumps(call.get("arguments", {}))}
        except (ValueError, KeyError, RecursionError):
            continue  # it stays text, which a taskset sees as an answer
        calls.append({"id": f"call_{len(calls)}", "type": "function", "function": function})
    if calls:
        message |= {"content": CALL.sub("", text).strip(), "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}  # not known here
    about = {"id": "agentrl", "object": "chat.completion", "created": int(time.time()), "model": body["model"]}
    return about | {"choices": [choice], "usage": usage}


def harness(vf: Any) -> ModuleType:
    """A module with our chat loop, for verifiers' loader."""
    import httpx
    from verifiers.v1.dialects.chat import message_to_wire

    class Loop(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc, name-defined]
        APPENDS_SYSTEM_PROMPT = True
        SUPPORTS_MCP = True
        SUPPORTS_RESUME = True
        EXECUTES_CODE = False
        NEEDS_CONTAINER = False

        async def launch(
            self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: dict[str, str], data: Any,
            **_: Any,
        ) -> Any:  # fmt: skip
            """Ask the policy, call its tools, until it calls none."""
            system, prompt = self.resolve_prompt(data)
            messages = [{"role": "system", "content": system}] if system else []
            if isinstance(prompt, str):
                messages.append({"role": "user", "content": prompt})
            else:
                messages += [message_to_wire(m) for m in prompt or ()]
            async with Tools(mcp_urls) as tools, httpx.AsyncClient(timeout=None) as client:
                headers = {"Authorization": f"Bearer {secret}"}
                while True:
                    body = {"model": ctx.model, "messages": messages} | ({"tools": tools.shown} if tools.shown else {})
                    answer = await client.post(f"{endpoint}/chat/completions", json=body, headers=headers)
                    if answer.status_code != 200:
                        code = 0 if trace.stop_condition is not None else 1  # a @stop refuses the turn
                        return vf.ProgramResult(exit_code=code, stdout="", stderr=answer.text[-1000:])
                    said = answer.json()["choices"][0]["message"]
                    messages.append({k: v for k, v in said.items() if v is not None})
                    if not said.get("tool_calls"):
                        return vf.ProgramResult(exit_code=0, stdout="", stderr="")
                    for call in said["tool_calls"]:
                        text = await tools.call(call["function"])
                        messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})

    module = ModuleType(HARNESS)
    module.Loop = Loop  # type: ignore[attr-defined]
    module.__all__ = ["Loop"]  # type: ignore[attr-defined]
    return module


class Tools:
    """The tool servers of a task."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls, self._stack = urls, contextlib.AsyncExitStack()
        self._clients: dict[str, Any] = {}
        self.shown: list[dict[str, Any]] = []

    async def __aenter__(self) -> Tools:
        for url in self._urls.values():
            from mcp import Client

            client = await self._stack.enter_async_context(Client(url))
            for tool in (await client.list_tools()).tools:
                self._clients[tool.name] = client
                about = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
                self.shown.append({"type": "function", "function": about})
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    async def call(self, function: Mapping[str, Any]) -> str:
        """The result of a call as text, or what is wrong with it."""
        client = self._clients.get(function["name"])
        if client is None:
            return f"There is no tool {function['name']!r}; there are {', '.join(self._clients)}."
        try:
            result = await client.call_tool(function["name"], json.loads(function["arguments"]))
        except Exception as error:
            return f"error: {type(error).__name__}: {str(error)[:400]}"
        return "\n".join(getattr(p, "text", f"[{getattr(p, 'type', 'unknown')}: not shown]") for p in result.content)


SHAPES = {"verifiers": Verifiers}
