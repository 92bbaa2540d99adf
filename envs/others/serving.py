"""Any of our environments as an OpenEnv server: `agentrl env serve ENV` (the wire of OpenEnv 0.10; extra: openenv).

`/ws` has a session with an environment of its own; POST /reset and /step play one more, which all who ask share. An
action is {"message": text}, an observation {"text": text}; what our rollouts read of an info stands in the metadata.
Golden answers stay here. Left out: MCP tools (`/mcp` answers that there are none) and the web interface.

Without a token only this machine is answered, and no web page of another site: AGENTRL_ENV_TOKEN opens it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import math
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import gymnasium
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from agentrl.envs.errors import TaskError, ToolFailure
from agentrl.errors import AgentRLError, need
from agentrl.retriever.wire import checked_token, is_loopback

TOKEN_VARIABLE = "AGENTRL_ENV_TOKEN"
VERSION = "1.0.0"  # of OpenEnv's HTTP interface
MAX_MESSAGE = 4 << 20  # bytes of one message to us
_log = logging.getLogger("agentrl.envs.serving")

Make = Callable[[], gymnasium.Env[Any, Any]]
Splits = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Service:
    """How an environment is served. `splits`: the rows of each split, of which a client chooses by split and index."""

    name: str
    description: str = ""
    splits: Splits = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    max_sessions: int = 512
    follow_stdin: bool = False  # end when standard input ends


class Session:
    """One environment and the episode that it plays. A blocking one has a thread of its own."""

    def __init__(self, env: gymnasium.Env[Any, Any], splits: Splits) -> None:
        self._env, self._splits = env, splits
        inner = env.unwrapped
        self._areset, self._astep = getattr(inner, "areset", None), getattr(inner, "astep", None)
        self._thread = None if self._astep else ThreadPoolExecutor(1, thread_name_prefix="openenv")
        self.id: str | None = None
        self.steps = 0

    async def reset(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Begin the task that `split` and `index`, or `task`, or the seed choose. TaskError where there is none."""
        seed, row = data.get("seed"), self._row(data)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise TaskError(f"seed is {seed!r:.40}; give a whole number, not below 0")
        if row is None and self._splits and seed is not None:
            rows = next(iter(self._splits.values()))
            row = rows[seed % len(rows)]
        self.id, self.steps = str(data.get("episode_id") or uuid.uuid4().hex), 0
        options = None if row is None else dict(row)
        if self._areset is not None:
            text, info = await self._areset(seed=seed, options=options)
        else:
            text, info = await self._blocking(lambda: self._env.reset(seed=seed, options=options))
        return observation(text, None, False, info)

    async def step(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """One turn of {"message": text}."""
        text = action.get("message")
        if not isinstance(text, str) or set(action) - {"message", "metadata"}:
            raise TaskError(f'the action is {str(dict(action))[:80]}; give {{"message": text}}')
        if self._astep is not None:
            seen, reward, terminated, truncated, info = await self._astep(text)
        else:
            seen, reward, terminated, truncated, info = await self._blocking(lambda: self._env.step(text))
        self.steps += 1
        return observation(seen, float(reward), bool(terminated or truncated), {**info, "truncated": bool(truncated)})

    def state(self) -> dict[str, Any]:
        """Which episode, and how far."""
        return {"episode_id": self.id, "step_count": self.steps}

    async def close(self) -> None:
        """Close the environment."""
        aclose = getattr(self._env.unwrapped, "aclose", None)
        with contextlib.suppress(Exception):
            if aclose is not None:
                await aclose()
            elif self._thread is None:
                self._env.close()
        if self._thread is not None:
            self._thread.submit(self._env.close)
            self._thread.shutdown(wait=False)

    async def _blocking(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _row(self, data: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if "task" in data:
            if not isinstance(data["task"], dict):
                raise TaskError("task is no object; give {question, golden_answers}")
            return data["task"]
        if "split" not in data and "index" not in data:
            return None
        return task_at(self._splits, data.get("split", next(iter(self._splits), "")), data.get("index"))


def task_at(splits: Splits, split: Any, index: Any) -> Mapping[str, Any]:
    """A row of a split. TaskError where there is none."""
    rows = splits.get(split) if isinstance(split, str) else None
    if rows is None:
        raise TaskError(f"there is no split {split!r:.60}; there are {', '.join(splits) or 'none: serve with --tasks'}")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(rows):
        raise TaskError(f"index is {index!r:.40}; {split} has {len(rows)} tasks, from 0")
    return rows[index]


def observation(text: str, reward: float | None, done: bool, info: Mapping[str, Any]) -> dict[str, Any]:
    """An observation on OpenEnv's wire."""
    metadata = {k: v for k, v in info.items() if k not in ("observation_parts", "messages")}
    shown = {"text": text, "metadata": metadata}
    if reward is not None and not math.isfinite(reward):
        raise ToolFailure(f"the environment's reward is {reward}")
    return {"observation": shown, "reward": reward, "done": done, "metadata": metadata}


class Served:
    """The answers of a served environment, by path."""

    def __init__(self, make: Make, service: Service) -> None:
        self._make, self._service = make, service
        self._open = 0
        self._shared: Session | None = None
        self._lock = asyncio.Lock()

    def app(self, token: str | None) -> ASGIApp:
        """The whole application, behind the guard."""
        name = "/{name}"
        routes = [
            WebSocketRoute("/ws", self.socket),
            Route("/health", _plain({"status": "healthy"})),
            Route("/metadata", _plain({"name": self._service.name, "description": self._service.description})),
            Route("/schema", _plain(SCHEMAS)),
            Route("/openapi.json", _plain(openapi(self._service.name))),
            Route("/list_environments", _plain([self._service.name])),
            Route("/state", self.state),
            Route("/mcp", self.mcp, methods=["POST"]),
            *(Route(f"/{do}", self.shared, methods=["POST"]) for do in ("reset", "step")),
            Route(f"{name}/splits", self.splits),
            *(Route(f"{name}/{what}", self.tasks, methods=["POST"]) for what in _TASKS),
        ]
        return Guard(Starlette(routes=routes), token)

    async def socket(self, socket: WebSocket) -> None:
        """One session."""
        await socket.accept()
        if self._open >= self._service.max_sessions:
            message = f"{self._open} sessions are open, at most {self._service.max_sessions} are served"
            await socket.send_text(_dumped(_fault(message, "CAPACITY_REACHED")))
            await socket.close()
            return
        self._open += 1
        session: Session | None = None
        try:
            session = Session(self._make(), self._service.splits)
            while (answer := await self._answer(session, await socket.receive_text())) is not None:
                await socket.send_text(answer)
            await socket.close()
        except WebSocketDisconnect:
            pass
        finally:
            self._open -= 1
            if session is not None:
                await session.close()

    async def _answer(self, session: Session, raw: str) -> str | None:
        """The answer to one message; None where it says good-bye."""
        try:
            message = json.loads(raw)
        except (ValueError, RecursionError) as error:
            return _dumped(_fault(f"Invalid JSON: {error}", "INVALID_JSON"))
        kind = message.get("type") if isinstance(message, dict) else None
        data = message.get("data", {}) if isinstance(message, dict) else {}
        if kind == "close":
            return None
        if kind == "state":
            return _dumped({"type": "state", "data": session.state()})
        if kind == "mcp":
            return _dumped({"type": "mcp", "data": _no_method(data)})
        if kind not in ("reset", "step") or not isinstance(data, dict):
            code = "UNKNOWN_TYPE" if isinstance(data, dict) else "VALIDATION_ERROR"
            return _dumped(_fault(f"Unknown message type: {kind!r:.40}; use reset, step, state or close", code))
        answer, fault = await _played(session.reset(data) if kind == "reset" else session.step(data))
        return _dumped(fault if answer is None else {"type": "observation", "data": answer})

    async def shared(self, request: Request) -> Response:
        """POST /reset and /step: one environment that all who ask share."""
        data = await _body(request)
        async with self._lock:
            if self._shared is None:
                self._shared = Session(self._make(), self._service.splits)
            if request.url.path == "/reset":
                answer, fault = await _played(self._shared.reset(data))
            else:
                action = data.get("action")
                wanted = self._shared.step(action if isinstance(action, dict) else {})
                answer, fault = await _played(wanted)
        if answer is not None:
            return _json(answer)
        said = fault["data"]
        return _json({"detail": said["message"]}, 422 if said["code"] == "VALIDATION_ERROR" else 500)

    async def state(self, request: Request) -> Response:
        """Of the environment behind POST /reset."""
        return _json({"episode_id": None, "step_count": 0} if self._shared is None else self._shared.state())

    async def mcp(self, request: Request) -> Response:
        """No tools here: the error that JSON-RPC has for it."""
        return _json(_no_method(await _body(request)))

    async def splits(self, request: Request) -> Response:
        """Names and types of the splits."""
        if (refused := self._misnamed(request)) is not None:
            return refused
        kinds = ("train", "validation", "test")
        return _json([{"name": s, "type": s if s in kinds else "validation"} for s in self._service.splits])

    async def tasks(self, request: Request) -> Response:
        """tasks, num_tasks, task, task_range of a split."""
        if (refused := self._misnamed(request)) is not None:
            return refused
        data, what = await _body(request), request.url.path.rpartition("/")[2]
        split, splits = data.get("split"), self._service.splits
        try:
            if what == "task":
                task_at(splits, split, data.get("index"))
                return _json({"task": self._task(str(split), data["index"])})
            rows = splits.get(split) if isinstance(split, str) else None
            if rows is None:
                task_at(splits, split, 0)
            assert rows is not None
        except TaskError as error:
            return _json({"detail": str(error)}, 400)
        if what == "num_tasks":
            return _json({"num_tasks": len(rows)})
        bounds = slice(data.get("start"), data.get("stop")) if what == "task_range" else slice(None)
        if any(b is not None and (isinstance(b, bool) or not isinstance(b, int)) for b in (bounds.start, bounds.stop)):
            return _json({"detail": "start and stop are whole numbers"}, 422)
        shown = [self._task(str(split), i) for i in range(len(rows))[bounds]]
        return _json({"tasks": shown} | ({"env_name": self._service.name} if what == "tasks" else {}))

    def _task(self, split: str, index: int) -> dict[str, Any]:
        row = self._service.splits[split][index]
        return {"id": str(row.get("id", f"{split}-{index}")), "index": index, "question": row.get("question")}

    def _misnamed(self, request: Request) -> Response | None:
        name = request.path_params["name"]
        if name.lower() == self._service.name.lower():
            return None
        return _json({"detail": f"there is no environment {name[:60]!r}; this is {self._service.name}"}, 404)


_TASKS = ("tasks", "num_tasks", "task", "task_range")
_TEXT = {"type": "string"}
_METADATA = {"type": "object", "additionalProperties": True}
SCHEMAS = {
    "action": {
        "type": "object",
        "title": "Action",
        "properties": {"message": _TEXT | {"description": "the text of one turn of the model"}, "metadata": _METADATA},
        "required": ["message"],
        "additionalProperties": False,
    },
    "observation": {
        "type": "object",
        "title": "Observation",
        "properties": {
            "text": _TEXT | {"description": "what the model reads next"},
            "done": {"type": "boolean"},
            "reward": {"type": ["number", "null"]},
            "metadata": _METADATA,
        },
        "required": ["text"],
    },
    "state": {
        "type": "object",
        "title": "State",
        "properties": {"episode_id": {"type": ["string", "null"]}, "step_count": {"type": "integer", "minimum": 0}},
    },
}


def openapi(name: str) -> dict[str, Any]:
    """The paths that exist, for those who probe the server."""
    ok = {"200": {"description": "ok"}}
    get = ("health", "metadata", "schema", "state", "list_environments", f"{name}/splits")
    post = ("reset", "step", "mcp", *(f"{name}/{what}" for what in _TASKS))
    paths = {f"/{p}": {"get": {"responses": ok}} for p in get} | {f"/{p}": {"post": {"responses": ok}} for p in post}
    return {"openapi": "3.1.0", "info": {"title": name, "version": VERSION}, "paths": paths}


class Guard:
    """Lets in who has the token; without one, who speaks to this machine by its own name, and no foreign web page."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            return
        reason = self._reason(HTTPConnection(scope))
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()  # its connect
            await send({"type": "websocket.close", "code": 4403, "reason": reason[:120]})
        else:
            await _json({"detail": reason}, 403 if self._token is None else 401)(scope, receive, send)

    def _reason(self, asked: HTTPConnection) -> str | None:
        host, origin = asked.headers.get("host", ""), asked.headers.get("origin")
        if self._token is not None:
            if asked.url.path == "/health":
                return None
            given = asked.headers.get("authorization", "").encode()
            right = hmac.compare_digest(given, f"Bearer {self._token}".encode())
            return None if right else f"a bearer token is needed, that of {TOKEN_VARIABLE} on the server"
        if not is_loopback((urlsplit(f"//{host}").hostname or "") if host else ""):
            return f"this server is for its own machine; set {TOKEN_VARIABLE} for others"
        if origin is not None and urlsplit(origin).netloc != host:
            return "web pages of other sites are not answered"
        return None


def serve(make: Make, service: Service, *, say: Callable[[str], object] = print) -> None:
    """Serve until SIGINT or SIGTERM. Port 0 takes a free one; the address is said once it answers.

    AgentRLError where the port is taken, or the host is not a loopback address and AGENTRL_ENV_TOKEN is not set.
    """
    need("agentrl env serve", "websockets")
    token = checked_token(os.environ.get(TOKEN_VARIABLE))
    if token is None and not is_loopback(service.host):
        raise AgentRLError(
            f"host {service.host!r} can be reached from other machines: set {TOKEN_VARIABLE} to a secret, for the "
            "server and its clients, or serve on 127.0.0.1"
        )
    make().close()  # what is wrong with its arguments is said now
    if service.follow_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with _bound(service.host, service.port) as listener:
        config = uvicorn.Config(
            Served(make, service).app(token),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            ws_max_size=MAX_MESSAGE,
            ws_per_message_deflate=False,
            ws_ping_interval=None,  # a client that waits for a slow tool is not gone
            timeout_graceful_shutdown=5,
        )
        server = _Server(config)
        shown = f"[{service.host}]" if ":" in service.host else service.host
        where = f"http://{shown}:{listener.getsockname()[1]}"
        server.ready = lambda: say(f"serving {service.name} at {where} as an OpenEnv environment (Ctrl-C stops)")
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, which tells when it accepts."""

    ready: Callable[[], object]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then `ready`."""
        await super().startup(sockets)
        self.ready()


def _bound(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise AgentRLError(f"cannot listen on {host} port {port} ({error}); choose another with --port") from error
    return listener


def _end_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4_096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


async def _played(call: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(observation, {}) or (None, the error message of the wire)."""
    try:
        return await call, {}
    except TaskError as error:
        return None, _fault(str(error), "VALIDATION_ERROR")
    except (ToolFailure, gymnasium.error.ResetNeeded) as error:
        return None, _fault(f"{type(error).__name__}: {error}", "EXECUTION_ERROR")
    except Exception as error:
        _log.exception("the environment failed")
        return None, _fault(f"{type(error).__name__}: {error}", "EXECUTION_ERROR")


def _fault(message: str, code: str) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message[:1000], "code": code}}


def _no_method(request: Any) -> dict[str, Any]:
    asked = request if isinstance(request, dict) else {}
    known = isinstance(asked.get("method"), str)
    fault = {"code": -32601, "message": "this server has no tools; play it with reset and step"}
    return {
        "jsonrpc": "2.0",
        "id": asked.get("id"),
        "error": fault if known else {"code": -32600, "message": "Invalid Request"},
    }


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request; {} for anything else, an own error for what is too long."""
    whole = b""
    async for part in request.stream():
        whole += part
        if len(whole) > MAX_MESSAGE:
            return {}
    try:
        data = orjson.loads(whole) if whole else {}
    except ValueError:
        data = {}
    return data if isinstance(data, dict) else {}


def _dumped(value: Any) -> str:
    """JSON of a message; half characters of an environment's text, which JSON in UTF-8 cannot hold, are escaped."""
    try:
        return orjson.dumps(
            value, default=_plainly, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        ).decode()
    except TypeError:
        return json.dumps(value, default=str)


def _plainly(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _json(value: Any, status: int = 200) -> Response:
    return Response(_dumped(value), status, media_type="application/json")


def _plain(value: Any) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return _json(value)

    return answer
