"""Playing environments with a model behind an OpenAI-compatible server: text in, text out, no token ids.

The question is a user message, what the model says an assistant message, and what the environment answers a user
message again, or a tool message. On `/completions` all of it is one text that grows. Nothing of it can be trained on.

Left out: native tool calls (the environment's own text protocol is played), and limits in tokens of what the
environment says, which need the model's tokenizer: a token counts as `CHARACTERS` characters.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import httpx

from agentrl.errors import AgentRLError, ConfigError
from agentrl.rewards import reaches
from agentrl.rollouts.chat import Parts, parts_of
from agentrl.rollouts.play import CONTEXT, REWARD, Failed, Player, guarded, number_of, text_of, unpacked
from agentrl.rollouts.pool import EnvHandle
from agentrl.types import Sample, Stop, Task, Turn

KEY = "AGENTRL_API_KEY"  # the environment variable whose value is sent as the key, where no other is named
CHARACTERS = 4  # that a token of an observation is taken for
MAX_STOPS = 4  # as OpenAI's interface allows; the others are looked for here alone
MAX_RESPONSE_BYTES = 32 << 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
Role = Literal["user", "tool"]
Messages = list[dict[str, Any]]


class ContextFull(Exception):
    """The server says that the conversation is longer than its model's context."""


class Refused(Exception):
    """The server refuses a request as it is (400, 413, 422): its own words."""


class Said(NamedTuple):
    """What the model said in one turn, its stop string included."""

    text: str
    stop: Stop


@dataclass
class Server:
    """One model of one server. `url` ends with `/chat/completions`, `/completions`, or the `/v1` before them: chat.

    timeout_s: of one request. retries: further attempts on 429, 5xx and connections that fail, with growing pauses, or
    as long as the server's Retry-After asks. The key comes from the environment variable `key_variable` alone.
    """

    url: str
    model: str
    timeout_s: float = 300.0
    retries: int = 6
    key_variable: str = KEY
    rest: dict[str, Any] = field(default_factory=dict)  # what `prepare` finds that this server wants otherwise
    chat: bool = field(init=False)

    def __post_init__(self) -> None:
        parsed = httpx.URL(self.url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError([f"--url {self.url}: give the server's address, for example http://127.0.0.1:8000/v1"])
        if parsed.userinfo or parsed.query:
            raise ConfigError([f"--url: keys do not belong into the address; set the variable {self.key_variable}"])
        path = parsed.path.rstrip("/")
        self.chat = path.endswith("/chat/completions") or not path.endswith("/completions")
        base = path.removesuffix("/completions").removesuffix("/chat")
        self.base = str(parsed.copy_with(path=base or "/v1")).rstrip("/")
        self.endpoint = self.base + ("/chat/completions" if self.chat else "/completions")
        self._key = os.environ.get(self.key_variable, "").strip()
        if not all("!" <= c <= "~" for c in self._key):
            raise ConfigError([f"the key in {self.key_variable} has characters that no header can hold"])
        self._jitter = random.Random()  # of its own: pauses must not consume a seeded stream
        self._clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}
        self._limit = "max_tokens"

    async def say(self, messages: Messages, *, max_tokens: int, stop: Sequence[str], temperature: float) -> Said:
        """The next turn. OSError where the server stays away, ContextFull, Refused, AgentRLError (key, address)."""
        body = self._body(messages, max_tokens, stop, temperature)
        choice = await self._choice(body)
        if self.chat:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else None
        else:
            text = choice.get("text")
        if not (text is None or isinstance(text, str)):
            raise OSError(f"{self.endpoint} sent a {type(text).__name__} where the text of a choice belongs")
        return said(text or "", stop, choice.get("finish_reason"), choice.get("stop_reason"))

    async def prepare(self, stop: Sequence[str], temperature: float) -> list[str]:
        """Ask for one word, and find out what this server wants otherwise; a line for each such thing.

        AgentRLError where it does not answer, or refuses the address, the key or the model's name.
        """
        told: list[str] = []
        for _ in range(4):
            messages: Messages = [{"role": "user", "content": "Say yes."}]
            try:
                await self.say(messages, max_tokens=16, stop=stop, temperature=temperature)
                return told
            except Refused as why:
                line = self._adapted(str(why))
                if line is None:
                    raise AgentRLError(f"{self.endpoint} refuses a request: {why}") from why
                told.append(line)
            except (OSError, ContextFull) as why:
                raise AgentRLError(
                    f"{self.endpoint} does not answer a first question: {why}. Is the server running, and is its "
                    "address the one that ends with /v1?"
                ) from why
        raise AgentRLError(f"{self.endpoint} refuses every form of a request; it takes no such model's questions here")

    async def models(self) -> list[str]:
        """The names of the models that it serves."""
        found = json.loads(await self._answer("GET", self.base + "/models", None))
        rows = found.get("data") if isinstance(found, dict) else None
        return [str(m["id"]) for m in rows or [] if isinstance(m, dict) and "id" in m]

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    # ------------------------------------------------------------------------------------------------------- internal

    def _body(self, messages: Messages, max_tokens: int, stop: Sequence[str], temperature: float) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, self._limit: max_tokens, "temperature": temperature}
        if stop:
            body["stop"] = list(stop[:MAX_STOPS])
        body = {k: v for k, v in body.items() if k not in self.rest}
        return body | ({"messages": messages} if self.chat else {"prompt": "".join(m["content"] for m in messages)})

    def _adapted(self, why: str) -> str | None:
        """Send what a refusal asks for, and say so; None where it is about another thing."""
        if "max_completion_tokens" in why and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"
            return "the server wants max_completion_tokens in place of max_tokens"
        for name in ("temperature", "stop"):
            if name in why and name not in self.rest:
                self.rest[name] = None
                effect = "its own is used" if name == "temperature" else "texts are cut after they have come"
                return f"the server takes no {name}: {effect}"
        return None

    async def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._answer("POST", self.endpoint, body)
        try:
            choice = json.loads(answer)["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            choice = None
        if not isinstance(choice, dict):
            raise OSError(f"{self.endpoint} answered what is no completion: {self._shown(answer)}")
        return choice

    async def _answer(self, method: str, url: str, body: dict[str, Any] | None) -> bytes:
        """The body of a 200."""
        for attempt in range(self.retries + 1):
            try:
                status, content, wait_s = await self._sent(method, url, body)
                if status == 200:
                    return content
                problem = f"{url} answered {status}: {self._shown(content)}"
                self._final(status, problem)
            except httpx.HTTPError as error:
                problem, wait_s = f"{url} cannot be reached ({type(error).__name__}: {error})".replace(": )", ")"), 0.0
            except TimeoutError:
                problem, wait_s = f"{url} did not answer within {self.timeout_s:g} s", 0.0
            if attempt < self.retries:
                pause = self._jitter.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
                await asyncio.sleep(max(pause, min(wait_s, 4 * LONGEST_PAUSE_S)))
        raise OSError(f"{problem} ({self.retries + 1} attempts)")

    async def _sent(self, method: str, url: str, body: dict[str, Any] | None) -> tuple[int, bytes, float]:
        content = bytearray()
        text = None if body is None else json.dumps(body)  # ASCII: tools return lone surrogates, too
        sent = self._client().stream(method, url, content=text, headers={"content-type": "application/json"})
        async with asyncio.timeout(self.timeout_s), sent as response:
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_RESPONSE_BYTES:
                    raise OSError(f"{url} answered with more than {MAX_RESPONSE_BYTES >> 20} MiB")
        return response.status_code, bytes(content), _seconds(response.headers.get("retry-after"))

    def _final(self, status: int, problem: str) -> None:
        """Raise where another attempt cannot help."""
        if status in RETRIED:
            return
        if status in (400, 413, 422):
            low = problem.lower()
            if "context" in low and ("length" in low or "token" in low or "window" in low):
                raise ContextFull(problem)
            raise Refused(problem)
        key = f"; the key is taken from the variable {self.key_variable}" if status in (401, 403) else ""
        given = "" if self._key or not key else ", which is not set"
        raise AgentRLError(f"{problem}{key}{given}")

    def _shown(self, content: bytes) -> str:
        """The beginning of an answer for a message, without the key, which some servers repeat."""
        text = content[:4000].decode(errors="replace")
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text.split())[:300] or "nothing"

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
            direct = httpx.URL(self.base).host in ("127.0.0.1", "localhost", "::1")
            self._clients[loop] = httpx.AsyncClient(
                headers=headers, limits=limits, timeout=httpx.Timeout(self.timeout_s), trust_env=not direct
            )
        return self._clients[loop]


def _seconds(retry_after: str | None) -> float:
    try:
        value = float(retry_after or 0)
    except ValueError:  # a date, which no clock here is compared with
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def said(text: str, stop: Sequence[str], finish: Any, reason: Any = None) -> Said:
    """A server's text as the environment reads it: up to and with its first stop string.

    Servers leave the stop string out. vLLM names it (`stop_reason`); else the closing tag of the last tag that is
    open is put back, where the server says that it has stopped by itself.
    """
    ends = [at + len(s) for s in stop if (at := text.find(s)) >= 0]
    if ends:
        return Said(text[: min(ends)], "stop")
    if finish == "length":
        return Said(text, "length")
    if isinstance(reason, str) and reason in stop:
        return Said(text + reason, "stop")
    opened = [(text.rfind("<" + s[2:]), s) for s in stop if s.startswith("</") and s.endswith(">")]
    at, closing = max(opened, default=(-1, ""))
    return Said(text + closing if at >= 0 else text, "stop")


class TextOnly:
    """Stands where other players have a sampler of tokens."""

    policy_version = 0

    async def sample(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        session: int | None = None,
    ) -> Sample:
        """Not what a server of texts can do."""
        raise TypeError("a model behind a server of texts gives no token ids")

    def release(self, session: int) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class ServedPlayer(Player):
    """A `Player` whose model is behind a server; its trajectories have texts and no tokens."""

    chat: Any  # None: a server of texts has the template
    server: Server | None = None
    role: Role = "user"  # of what the environment says after the question

    async def _play(self, handle: EnvHandle, task: Task, session: int, turns: list[Turn]) -> tuple[bool, bool, bool]:
        assert self.server is not None
        config, info = self.config, dict[str, Any]()
        temperature = config.temperature if self.temperature is None else self.temperature
        stop = tuple(config.stop) or handle.stop_strings
        begun = await guarded(handle.reset(seed=session & 0x7FFFFFFF, options=task.options), config.tool_timeout_s)
        observation, _ = unpacked(begun, handle, "reset", ("observation", "info"))
        messages: Messages = [{"role": "user", "content": text_of(observation, handle)}]
        while True:
            limits: dict[str, Any] = {"max_tokens": config.max_tokens_per_turn, "temperature": temperature}
            try:
                spoken = await self.server.say(messages, stop=stop, **limits)
            except ContextFull as why:
                if not turns:
                    raise Failed(f"{CONTEXT}{why}") from why
                return False, True, bool(info.get("correct", False))
            except (OSError, Refused) as why:
                raise Failed(f"server: {why}") from why
            terminated, truncated, info, parts = await self._step(handle, spoken, turns)
            if terminated or truncated or len(turns) >= config.max_turns:
                total = math.fsum(t.reward for t in turns)
                correct = info.get("correct", reaches(total, self.correct_threshold))
                return terminated, not terminated, bool(correct)
            messages += [{"role": "assistant", "content": spoken.text}, self._observed(parts)]

    async def _step(
        self, handle: EnvHandle, spoken: Said, turns: list[Turn]
    ) -> tuple[bool, bool, dict[str, Any], Parts]:
        """One action, appended to `turns`."""
        began = time.perf_counter()
        answer = await guarded(handle.step(spoken.text), self.config.tool_timeout_s)
        names = ("observation", "reward", "terminated", "truncated", "info")
        observation, reward, terminated, truncated, info = unpacked(answer, handle, "step", names)
        reward = number_of(reward, handle)
        if not math.isfinite(reward):
            raise Failed(f"{REWARD}{handle.id} returned {reward!r} for an action")
        parts = parts_of(text_of(observation, handle), info)
        parts = parts._replace(body=parts.body[: CHARACTERS * self.config.max_observation_tokens])
        kept = {k: v for k, v in info.items() if k not in ("observation_parts", "answer_span", "messages")}
        kept.setdefault("latency_s", time.perf_counter() - began)
        turns.append(
            Turn(
                prompt_ids=[], action_ids=[], logprobs=[], action=spoken.text, observation=parts.text, reward=reward,
                stop=spoken.stop, info=kept,
            )
        )  # fmt: skip
        return bool(terminated), bool(truncated), info, parts

    def _observed(self, parts: Parts) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self.role, "content": parts.text}
        return message | ({"tool_call_id": "call00001"} if self.role == "tool" else {})


def served_by(url: str, model: str, **options: Any) -> Server:
    """The server of a model; where `model` is empty, the only one that it has. AgentRLError where it is not clear."""
    server = Server(url, model, **options)
    if not model:
        names = asyncio.run(_listed(server))
        if len(names) != 1:
            raise AgentRLError(f"{server.base} serves {', '.join(names) or 'no model'}: name the one that is meant")
        server.model = names[0]
    return server


async def _listed(server: Server) -> list[str]:
    try:
        return await server.models()
    except (OSError, ValueError, Refused, ContextFull) as why:
        raise AgentRLError(f"{server.base}/models does not say what is served: {why}") from why
    finally:
        await server.aclose()
