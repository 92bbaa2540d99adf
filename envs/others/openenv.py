"""An environment behind OpenEnv's WebSocket: `agentrl/OpenEnv-v0` (written for OpenEnv 0.10; extra: openenv).

One connection an environment, kept between its episodes. Whatever the server answers late, wrongly shaped or not at all
is a ToolFailure, and the next episode has a new connection. Left out: containers, the server's MCP tools, and actions
that are more than one text.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import gymnasium
import httpx

from agentrl.envs.errors import ToolFailure
from agentrl.envs.mcp_servers import from_environment
from agentrl.envs.others.env import all_body, task_seed
from agentrl.envs.protocol import MAX_BODY_CHARACTERS
from agentrl.envs.spaces import AnyText
from agentrl.errors import EnvError, need

Step = tuple[str, float, bool, bool, dict[str, Any]]
T = TypeVar("T")
MAX_MESSAGE = 16 << 20  # bytes
CONNECT_S = 20.0
PAGE = 500  # tasks of one request
UNGRADED = "(the environment grades)"  # for our loaders, which want a golden answer


class OpenEnvEnv(gymnasium.Env[str, str]):
    """An environment behind OpenEnv's WebSocket: `agentrl/OpenEnv-v0`.

    url: of the server, http or https. action: the field of its actions that takes the model's text, or a whole action
    with "{action}" where the text goes: {code: "{action}", language: python}. observation: the field that holds the
    text; None is the only one that is a text. A row's `split` and `index` choose the task, its `reset` is passed on as
    it is, and a seed of its id is always sent, so that a group plays one task. headers: values name environment
    variables, {Authorization: "Bearer ${MY_TOKEN}"}. timeout_s: for one answer.
    """

    def __init__(
        self,
        *,
        url: str = "http://127.0.0.1:8000",
        action: str | Mapping[str, Any] = "message",
        observation: str | None = None,
        stop_strings: tuple[str, ...] | list[str] = (),
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        need("agentrl/OpenEnv-v0", "websockets")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it is a number of seconds above 0")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"url is {url!r}; give the server's, such as http://127.0.0.1:8000")
        if isinstance(stop_strings, str):
            raise ValueError(f"stop_strings is {stop_strings!r}; give a list: [{stop_strings!r}]")
        self.observation_space, self.action_space = AnyText(), AnyText()
        self.stop_strings = tuple(stop_strings)
        self._url, self._timeout_s, self._field = url.rstrip("/"), timeout_s, observation
        self._action = _filler(action)
        self._headers = from_environment(headers or {}, "headers")
        self._socket: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the socket
        self._playing = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin the task of a row; without one, a task that the seed chooses."""
        return _run(self.areset(seed=seed, options=options))

    def step(self, action: str) -> Step:
        """One turn. ToolFailure where the server fails; the episode is then over."""
        return _run(self.astep(action))

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """`reset` for an event loop."""
        super().reset(seed=seed)
        self._playing = False
        row = options or {}
        data: dict[str, Any] = {k: row[k] for k in ("split", "index") if k in row}
        chosen = task_seed(row, int(self.np_random.integers(1 << 31)) if seed is None else seed)
        data |= {"seed": chosen} | dict(row.get("reset") or {})
        text, _, done, info = self._read(await self._ask({"type": "reset", "data": data}), "observation")
        if done:
            raise ToolFailure(f"{self._url} begins an episode that is over")
        self._playing = True
        return text, info

    async def astep(self, action: str) -> Step:
        """`step` for an event loop."""
        if not self._playing:
            raise gymnasium.error.ResetNeeded("step() was called before reset(), or after the episode ended")
        answer = await self._ask({"type": "step", "data": self._action(action)}, fresh=False)
        text, reward, done, info = self._read(answer, "observation")
        truncated = done and info["metadata"].get("truncated") is True
        self._playing = not done
        return text, reward, done and not truncated, truncated, info

    def state(self) -> dict[str, Any]:
        """The server's state of this episode."""
        answer = _run(self._ask({"type": "state"}, fresh=False))
        if answer.get("type") != "state" or not isinstance(found := answer.get("data"), dict):
            raise ToolFailure(f"{self._url} answered {_short(answer)}; a state is wanted")
        return found

    def tasks(self, split: str = "train") -> list[dict[str, Any]]:
        """Rows of the server's tasks: id, split, index, question. ToolFailure where it lists none."""
        with httpx.Client(base_url=self._url, headers=self._headers, timeout=self._timeout_s) as client:
            return list(_listed(client, split))

    def close(self) -> None:
        """Drop the connection."""
        socket, self._socket, self._playing = self._socket, None, False
        if socket is not None and self._loop is not None:
            with suppress(RuntimeError):  # its loop is closed, and it with it
                self._loop.call_soon_threadsafe(socket.transport.abort)

    def __del__(self) -> None:
        if getattr(self, "_socket", None) is not None:  # it was not closed, or not made
            self.close()

    async def aclose(self) -> None:
        """Say good-bye, then drop the connection."""
        if self._socket is not None and self._loop is asyncio.get_running_loop():
            with suppress(Exception):
                await asyncio.wait_for(self._socket.send('{"type": "close"}'), 1.0)
        self.close()

    # ------------------------------------------------------------------------------------------------------- internal

    async def _ask(self, message: dict[str, Any], fresh: bool = True) -> dict[str, Any]:
        """The server's answer to a message. Any failure drops the connection: a late answer is not the next one's."""
        from websockets.exceptions import ConnectionClosed, WebSocketException

        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                socket = await self._connected(fresh)
                with suppress(ConnectionClosed):  # a server that is full says so, then hangs up: read that
                    await socket.send(json.dumps(message))
                return _answer(await socket.recv(), self._url)
        except TimeoutError as error:
            self.close()
            late = limit.expired()
            said = f"did not answer within {self._timeout_s:g} s" if late else f"cannot be reached: {error}"
            raise ToolFailure(f"{self._url} {said}") from error
        except (OSError, WebSocketException) as error:
            self.close()
            raise ToolFailure(f"{self._url} failed: {type(error).__name__}: {str(error)[:300]}") from error
        except BaseException:
            self.close()
            raise

    async def _connected(self, fresh: bool) -> Any:
        """The connection; a new one only where a new episode begins."""
        from websockets.asyncio.client import connect
        from websockets.protocol import State

        loop = asyncio.get_running_loop()
        if self._socket is not None and self._loop is loop and self._socket.state is State.OPEN:
            return self._socket
        if not fresh:
            raise ToolFailure(f"{self._url} has closed the connection of this episode")
        self.close()
        address = "ws" + self._url.removeprefix("http") + "/ws"
        local = urlsplit(self._url).hostname in ("localhost", "127.0.0.1", "::1")
        self._socket = await connect(
            address,
            additional_headers=self._headers,
            max_size=MAX_MESSAGE,
            open_timeout=CONNECT_S,
            compression=None,
            ping_interval=None,  # every answer has a deadline
            proxy=None if local else True,
        )
        self._loop = loop
        return self._socket

    def _read(self, answer: dict[str, Any], kind: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Text, reward, done, info of an observation. ToolFailure where it has another shape."""
        data = answer.get("data")
        seen = data.get("observation") if isinstance(data, dict) else None
        if answer.get("type") != kind or not isinstance(data, dict) or not isinstance(seen, dict):
            self.close()
            raise ToolFailure(f"{self._url} answered {_short(answer)}; an observation is wanted")
        reward, done = data.get("reward"), data.get("done", False)
        reward = 0.0 if reward is None else reward
        if not isinstance(reward, int | float) or not math.isfinite(reward) or not isinstance(done, bool):
            self.close()
            raise ToolFailure(
                f"{self._url}: reward {_short(reward)}, done {_short(done)}; a number and a truth are wanted"
            )
        metadata = data.get("metadata") or seen.get("metadata") or {}
        metadata = metadata if isinstance(metadata, dict) else {}
        text = self._text(seen)[:MAX_BODY_CHARACTERS]
        info = {"metadata": metadata} | _known(metadata) | all_body(text)
        return text, float(reward), done, info

    def _text(self, seen: dict[str, Any]) -> str:
        texts = {k: v for k, v in seen.items() if isinstance(v, str)}
        if self._field is None and len(texts) == 1:
            return next(iter(texts.values()))
        if self._field in texts:
            return texts[self._field]  # type: ignore[index]
        shown = ", ".join(seen) or "none"
        if self._field is not None and self._field in seen and seen[self._field] is None:
            return ""
        raise EnvError(
            f"{self._url}: the observation has the fields {shown[:300]}, of which {len(texts)} are texts; name the one "
            f"that the model reads: env.kwargs.observation, now {self._field!r}"
        )


def _filler(action: str | Mapping[str, Any]) -> Callable[[str], dict[str, Any]]:
    """A function from the model's text to the server's action."""
    if isinstance(action, str):
        return lambda text: {action: text}
    places = [k for k, v in action.items() if v == "{action}"]
    if len(places) != 1:
        raise ValueError(f'action is {dict(action)!r}; exactly one of its values is "{{action}}", the model\'s text')
    return lambda text: {**action, places[0]: text}


def _known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What rollouts read of an info, where the server's metadata say it in the same words."""
    kinds = {"kind": str, "valid": bool, "correct": bool, "query": str, "answer": str}
    return {k: metadata[k] for k, kind in kinds.items() if isinstance(metadata.get(k), kind)}


def _answer(raw: str | bytes, url: str) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ToolFailure(f"{url} answered {_short(raw)}, which is no JSON object")
    if answer.get("type") == "error":
        data = answer.get("data") if isinstance(answer.get("data"), dict) else {}
        assert isinstance(data, dict)
        detail = f": {_short(data['errors'])}" if data.get("errors") else ""
        raise ToolFailure(f"{url} says {str(data.get('message'))[:400]} ({data.get('code')}){detail}")
    return answer


def _listed(client: httpx.Client, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split, page by page."""
    names = _json(client.get("/list_environments"))
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ToolFailure(f"{client.base_url} lists no environments: {_short(names)}")
    path = f"/{names[0]}"
    splits = [s.get("name") if isinstance(s, dict) else s for s in _json(client.get(f"{path}/splits"))]
    if split not in splits:
        raise ToolFailure(f"{client.base_url} has no split {split!r}; it has {', '.join(map(str, splits))}")
    count = _json(client.post(f"{path}/num_tasks", json={"split": split}))["num_tasks"]
    for start in range(0, int(count), PAGE):
        wanted = {"split": split, "start": start, "stop": min(start + PAGE, int(count))}
        for i, task in enumerate(_json(client.post(f"{path}/task_range", json=wanted))["tasks"], start):
            yield _row(task, split, i)


def _row(task: Any, split: str, index: int) -> dict[str, Any]:
    """One of our rows; the question is shown to people alone, the environment says its own."""
    task = task if isinstance(task, dict) else {}
    asked = next((task[k] for k in ("question", "prompt", "instruction") if isinstance(task.get(k), str)), "")
    question = asked.strip() or f"task {index} of {split}"
    return {
        "id": f"{split}-{index}",
        "question": question,
        "golden_answers": [UNGRADED],
        "split": split,
        "index": index,
    }


def _json(response: httpx.Response) -> Any:
    if response.status_code != 200:
        raise ToolFailure(f"{response.request.url} answered {response.status_code}: {response.text[:200]}")
    try:
        return response.json()
    except ValueError as error:
        raise ToolFailure(f"{response.request.url} answered what is no JSON: {response.text[:200]}") from error


@functools.cache
def _own_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="openenv", daemon=True).start()
    return loop


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, _own_loop()).result()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"
