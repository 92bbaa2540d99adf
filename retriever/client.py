"""Client of a Search-R1 retrieval server, such as `agentrl retriever serve`.

There is one code path, the asynchronous one; synchronous calls run it on a private loop in a thread, so that the
deadline is exact there too, also against a server that sends a byte a second. A call is tried at most `retries` + 1
times, on failed connections, timeouts, 5xx and whatever says Retry-After, with full jitter (uniform between 0 and an
exponentially growing cap), never on another 4xx. With several urls (`endpoints`) each try goes to the healthiest one.
Equal queries under way on one event loop share one request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from agentrl.retriever.base import MAX_QUERY_CHARS, Hit, check_request
from agentrl.retriever.corpus import Passage, parse_passage
from agentrl.retriever.endpoints import Endpoint, Endpoints
from agentrl.retriever.errors import (
    BadQuery,
    RetrieverBadResponse,
    RetrieverError,
    RetrieverRejected,
    RetrieverTimeout,
    RetrieverUnavailable,
)
from agentrl.retriever.wire import TOKEN_VARIABLE, checked_token, environment_token, is_loopback, parse_response

_T = TypeVar("_T")
_BACKOFF_S, _MAX_BACKOFF_S, _MAX_RETRY_AFTER_S = 0.1, 2.0, 30.0
_MAX_CONNECTIONS = 256  # of one event loop
_SAY_EVERY_S = 3.0


class RetrieverClient:
    """A `Searcher` over HTTP. One object serves many threads and event loops; connections are pooled per loop."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout_s: float = 10.0,
        retries: int | None = 3,
        attempt_timeout_s: float | None = None,
        hedge: bool = False,
        max_queries: int = 512,
        max_body_bytes: int = 8 << 20,
        max_response_bytes: int = 256 << 20,
        token: str | None = None,
    ) -> None:
        """`url` is the server's base, with or without a final `/retrieve`; several in a list, or with commas between.

        `timeout_s` bounds a whole call, retries included; `attempt_timeout_s` one attempt (default: what is left of the
        call). `retries` None tries again until `timeout_s` has passed. With `hedge`, an attempt that takes longer than
        95 % of the latest gets a second one beside it, and the first answer counts. More than `max_queries` queries, or
        a body beyond `max_body_bytes`, are sent as several requests. `token` defaults to the environment variable
        AGENTRL_RETRIEVER_TOKEN.
        """
        urls = [u for u in (url.split(",") if isinstance(url, str) else url) if u.strip()]
        bases = [_checked_url(u.strip()) for u in (urls or [""])]
        if timeout_s <= 0 or (retries is not None and retries < 0) or max_queries < 1:
            raise BadQuery(
                f"timeout_s = {timeout_s}, retries = {retries}, max_queries = {max_queries}: they must be > 0, ≥ 0, ≥ 1"
            )
        self.url = ",".join(bases)
        self.timeout_s, self.retries = timeout_s, retries
        self._attempt_timeout_s, self._hedge = attempt_timeout_s or timeout_s, hedge
        self._max_queries, self._max_body_bytes = max_queries, max_body_bytes
        self._max_response_bytes = max_response_bytes
        self._options: dict[str, Any] = {
            "timeout_s": timeout_s,
            "retries": retries,
            "attempt_timeout_s": attempt_timeout_s,
            "hedge": hedge,
            "max_queries": max_queries,
            "max_body_bytes": max_body_bytes,
            "max_response_bytes": max_response_bytes,
        }
        token = checked_token(token) or environment_token()
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        self._direct = all(is_loopback(httpx.URL(base).host) for base in bases)
        self._endpoints = Endpoints(bases)
        self._random = random.Random()  # of its own: jitter must not consume the run's seeded stream
        self._pools: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}
        self._flights: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, _Flight]]
        self._flights = weakref.WeakKeyDictionary()
        self._thread: _LoopThread | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"RetrieverClient({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without the token: the other process takes it from its own environment."""
        return partial(RetrieverClient, **self._options), (self.url,)

    def search_batch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages for each query, best first; a `RetrieverError` says what failed.

        Blocks the caller. In a coroutine, await `asearch_batch` instead.
        """
        return self._run(self.asearch_batch(queries, topk))

    async def asearch_batch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As `search_batch`. May be awaited on any event loop, and on several over the life of the client."""
        check_request(queries, topk)
        call = _Call(self.timeout_s)
        asked = [_clean(query) for query in queries]
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.timeout_s):
                found = await self._together(asked, topk, call)
        except TimeoutError:
            raise self._late(call, f"{len(queries)} queries") from None
        return [list(found[query]) for query in asked]

    async def adocument(self, identifier: str) -> Passage | None:
        """The document with this id, whole, or `None`: `GET /documents/ID`."""
        call = _Call(self.timeout_s)
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._tried("GET", f"/documents/{quote(_clean(identifier), safe='')}", None, call)
        except TimeoutError:
            raise self._late(call, "one document") from None
        except RetrieverRejected as error:
            if error.status == 404:
                return None
            raise
        try:
            return parse_passage(json.loads(body))
        except ValueError as error:
            raise RetrieverBadResponse(f"{self.url} sent no document ({error})") from error

    def document(self, identifier: str) -> Passage | None:
        """As `adocument`, for synchronous callers."""
        return self._run(self.adocument(identifier))

    def wait_until_ready(self, timeout_s: float = 60.0, say: Callable[[str], object] = print) -> None:
        """Block until the server answers, saying aloud what is waited for; `RetrieverUnavailable` after `timeout_s`.

        A server without /health (Search-R1's own has none) is ready when it answers one query.
        """
        self._run(self._wait(timeout_s, say))

    def describe(self) -> dict[str, Any]:
        """What the first url's /health says of its index; {} of a server that has none."""
        return self._run(self._described())

    async def aclose(self) -> None:
        """Close the connections of the running event loop. The client stays usable."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def close(self) -> None:
        """Close the connections and the thread of the synchronous calls. The client stays usable."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread.alive:
            thread.run(self.aclose())
            thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _requests(self, queries: Sequence[str], topk: int) -> Iterator[tuple[int, bytes]]:
        """The bodies to send, each with the number of its queries and within both bounds."""
        # 64 bytes are more than the other keys take.
        encoded = [json.dumps(query) for query in queries]
        start, size = 0, 64
        for position, query in enumerate(encoded):
            full = position - start == self._max_queries or size + len(query) + 1 > self._max_body_bytes
            if full and position > start:
                yield position - start, _body(encoded[start:position], topk)
                start, size = position, 64
            size += len(query) + 1
        if start < len(encoded):
            yield len(encoded) - start, _body(encoded[start:], topk)

    async def _together(self, queries: Sequence[str], topk: int, call: _Call) -> dict[str, list[Hit]]:
        """The hits of all distinct queries; those that another call is asking for already are awaited with it."""
        flights = self._flights.setdefault(asyncio.get_running_loop(), {})
        wanted = list(dict.fromkeys(queries))
        joined = {query: flights[query, topk] for query in wanted if (query, topk) in flights}
        own = [query for query in wanted if query not in joined]
        aboard: set[_Flight] = set(joined.values())
        if own:
            flight = _Flight(own, topk, flights, self._ask(own, topk, call))
            aboard.add(flight)
            joined |= dict.fromkeys(own, flight)
        for flight in aboard:
            flight.passengers += 1
        found: dict[str, list[Hit]] = {}
        try:
            for query, flight in joined.items():
                try:
                    found[query] = (await asyncio.shield(flight.task))[query]
                except RetrieverError:
                    if query in own:
                        raise
                    found[query] = (await self._ask([query], topk, call))[query]  # another call's failure is not ours
        finally:
            for flight in aboard:
                flight.leave()
        return found

    async def _ask(self, queries: Sequence[str], topk: int, call: _Call) -> dict[str, list[Hit]]:
        found: list[list[Hit]] = []
        for count, body in self._requests(queries, topk):
            answer = await self._tried("POST", "/retrieve", body, call)
            found += parse_response(answer, count, topk, self.url)
        return dict(zip(queries, found))

    async def _tried(self, method: str, path: str, body: bytes | None, call: _Call) -> bytes:
        """The body of a 200 after at most `retries` + 1 tries; without `retries`, until the call's deadline."""
        for attempt in itertools.count(1) if self.retries is None else range(1, self.retries + 2):
            try:
                return await self._hedged(method, path, body, call, attempt)
            except RetrieverUnavailable as error:
                call.failures.append(error)
            if self.retries is None or attempt <= self.retries:
                pause = self._random.uniform(0, min(_MAX_BACKOFF_S, _BACKOFF_S * 2 ** min(attempt - 1, 10)))
                await asyncio.sleep(max(pause, call.failures[-1].retry_after_s or 0.0))
        raise call.failures[-1]

    async def _hedged(self, method: str, path: str, body: bytes | None, call: _Call, attempt: int) -> bytes:
        """One attempt, and after the p95 a second one beside it; the first answer counts."""
        first = await self._endpoint(call)
        patience = self._endpoints.p95_s() if self._hedge else None
        if patience is None:
            return await self._attempt(first, method, path, body, call, attempt)
        tasks = [asyncio.ensure_future(self._attempt(first, method, path, body, call, attempt))]
        try:
            await asyncio.wait(tasks, timeout=patience)
            second = None if tasks[0].done() else self._endpoints.take(avoid=(first,))
            if second is not None:
                tasks.append(asyncio.ensure_future(self._attempt(second, method, path, body, call, attempt)))
            for next_one in asyncio.as_completed(tasks):
                try:
                    return await next_one
                except RetrieverUnavailable as error:
                    failure = error
            raise failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _endpoint(self, call: _Call) -> Endpoint:
        """The url to ask; waits while all circuits are open, which the call's deadline bounds."""
        while (found := self._endpoints.take()) is None:
            await asyncio.sleep(self._endpoints.wait_s())
        return found

    async def _attempt(
        self, endpoint: Endpoint, method: str, path: str, body: bytes | None, call: _Call, attempt: int
    ) -> bytes:
        """The body of a 200. `RetrieverUnavailable` where another attempt may help, another error where not."""
        begun, ended = time.monotonic(), self._endpoints.dropped
        try:
            content = await self._send(endpoint.url + path, method, body, call, attempt)
            ended = partial(self._endpoints.answered, seconds=time.monotonic() - begun)
            return content
        except RetrieverUnavailable as error:
            ended = partial(self._endpoints.failed, problem=str(error))
            raise self._marked(error, endpoint, call, attempt) from error.__cause__
        except RetrieverError as error:
            ended = partial(self._endpoints.answered, seconds=time.monotonic() - begun)
            raise self._marked(error, endpoint, call, attempt) from error.__cause__
        finally:
            ended(endpoint)

    def _marked(self, error: RetrieverError, endpoint: Endpoint, call: _Call, attempt: int) -> RetrieverError:
        error.url, error.attempt, error.elapsed_s = endpoint.url, attempt, call.elapsed_s
        most = "" if self.retries is None else f" of {self.retries + 1}"
        tries = f"attempt {attempt}{most}, {call.elapsed_s:.2f} s, request {call.name}"
        error.args = (f"{error.args[0]} ({tries})", *error.args[1:])
        return error

    def _late(self, call: _Call, what: str) -> RetrieverTimeout:
        known = str(call.failures[-1]) if call.failures else self._endpoints.why_open()
        last = f"; last failure: {known}" if known else ""
        error = RetrieverTimeout(
            f"{self.url} did not answer {what} within {self.timeout_s:g} s{last}; "
            f"raise the timeout or look at the server's log (request {call.name})"
        )
        error.url, error.attempt, error.elapsed_s = self.url, len(call.failures) + 1, call.elapsed_s
        return error

    async def _send(self, url: str, method: str, body: bytes | None, call: _Call, attempt: int) -> bytes:
        headers = {"x-request-id": f"{call.name}-{attempt}", "x-timeout-ms": str(max(1, int(1e3 * call.left_s)))}
        try:
            async with (
                asyncio.timeout(self._attempt_timeout_s),
                self._pool().stream(method, url, content=body, headers=headers) as response,
            ):
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > self._max_response_bytes:
                        raise RetrieverBadResponse(
                            f"{url} answered with more than {self._max_response_bytes} bytes; ask for fewer passages"
                        )
        except TimeoutError:
            raise RetrieverTimeout(f"{url} did not answer within {self._attempt_timeout_s:g} s") from None
        except httpx.DecodingError as error:
            raise RetrieverBadResponse(f"{url} sent a body that cannot be decoded ({error})") from error
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise RetrieverUnavailable(
                f"{url} cannot be reached ({reason}); is the server running? "
                "Start one with `agentrl retriever serve INDEX`"
            ) from error
        return _checked(url, response, bytes(content))

    async def _wait(self, timeout_s: float, say: Callable[[str], object]) -> None:
        begun = time.monotonic()
        said = -_SAY_EVERY_S
        pause_s = 0.05
        while True:
            left_s = timeout_s - (time.monotonic() - begun)
            try:
                async with asyncio.timeout(max(left_s, 0.1)):
                    return await self._probe()
            except (RetrieverUnavailable, TimeoutError) as error:
                waited = time.monotonic() - begun
                if waited >= timeout_s:
                    reason = str(error) or "it accepts connections and does not answer; look at its log"
                    raise RetrieverUnavailable(
                        f"waited {waited:.0f} s for the retriever at {self.url}: {reason}"
                    ) from error
            if waited - said >= _SAY_EVERY_S:
                say(f"waiting for retriever at {self.url} ({waited:.0f} s)")
                said = waited
            await asyncio.sleep(min(pause_s, timeout_s - waited))
            pause_s = min(1.0, 1.5 * pause_s)

    async def _probe(self) -> None:
        """Whether every url answers."""
        for endpoint in self._endpoints.all:
            call = _Call(self.timeout_s)
            try:
                await self._send(f"{endpoint.url}/health", "GET", None, call, 1)
            except RetrieverRejected as error:
                if error.status not in (404, 405):
                    raise
                answer = await self._send(f"{endpoint.url}/retrieve", "POST", _body(['"ready"'], 1), call, 1)
                parse_response(answer, 1, 1, endpoint.url)

    async def _described(self) -> dict[str, Any]:
        try:
            answer = await self._send(f"{self._endpoints.all[0].url}/health", "GET", None, _Call(self.timeout_s), 1)
            told = json.loads(answer)
        except (RetrieverUnavailable, RetrieverRejected, RetrieverBadResponse, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def _pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for other in [other for other in list(self._pools) if other.is_closed()]:
                del self._pools[other]  # its sockets go with it
            pool = self._pools[loop] = httpx.AsyncClient(
                headers=self._headers,
                timeout=httpx.Timeout(None, connect=5.0),  # the rest is bounded by asyncio.timeout
                limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS),
                verify="https://" in self.url,  # over plain http, loading certificates costs 50 ms for nothing
                trust_env=not self._direct,  # a proxy cannot reach this machine's loopback
            )
        return pool

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        with self._lock:
            if self._thread is None or not self._thread.alive:
                self._thread = _LoopThread()
            thread = self._thread
        return thread.run(work)


class _LoopThread:
    """An event loop in a daemon thread, for synchronous callers. A fork leaves it behind: see `alive`."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = loop = asyncio.new_event_loop()

        def main() -> None:
            loop.run_forever()
            loop.close()

        self._thread = threading.Thread(target=main, name="retriever-client", daemon=True)
        self._thread.start()
        self._stop = weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)  # a client dropped without close()
        self._stop.atexit = False

    @property
    def alive(self) -> bool:
        return self._pid == os.getpid() and self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller ends the request too
            raise

    def stop(self) -> None:
        self._stop()
        self._thread.join()


_Key = tuple[str, int]


class _Call:
    """What the tries of one call have in common."""

    def __init__(self, timeout_s: float) -> None:
        self.name = uuid.uuid4().hex[:16]
        self.failures: list[RetrieverUnavailable] = []
        self._begun, self._timeout_s = time.monotonic(), timeout_s

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    @property
    def left_s(self) -> float:
        return self._timeout_s - self.elapsed_s


class _Flight:
    """A request under way for some queries; it is given up when the last who waits for it leaves."""

    def __init__(
        self, queries: Sequence[str], topk: int, flights: dict[_Key, _Flight], ask: Coroutine[Any, Any, dict[str, Any]]
    ) -> None:
        self._keys, self._flights = [(query, topk) for query in queries], flights
        self.passengers = 0
        self.task = asyncio.ensure_future(ask)
        self.task.add_done_callback(self._landed)
        flights.update(dict.fromkeys(self._keys, self))

    def leave(self) -> None:
        self.passengers -= 1
        if not self.passengers and not self.task.done():
            self._clear()
            self.task.cancel()

    def _landed(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._clear()
        if not task.cancelled():
            task.exception()  # somebody may have left before it was seen

    def _clear(self) -> None:
        for key in self._keys:
            if self._flights.get(key) is self:
                del self._flights[key]


def _checked_url(url: str) -> str:
    """The base of a url; `BadQuery` where it is none, or holds a password."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise BadQuery(f"url {url!r}: expected http://HOST:PORT, for example http://127.0.0.1:8000")
    if parts.userinfo:
        raise BadQuery(f"the url of {parts.host} holds a password, which logs would show: use {TOKEN_VARIABLE}")
    return url.rstrip("/").removesuffix("/retrieve")


def _checked(url: str, response: httpx.Response, content: bytes) -> bytes:
    """The content of a 200; the typed error of every other answer."""
    status = response.status_code
    if status == 200:
        return content
    reason = content[:200].decode("utf-8", "replace")
    wait = response.headers.get("retry-after", "")
    if status >= 500 or (status >= 400 and wait):
        error = RetrieverUnavailable(f"{url} answered {status}: {reason}; look at the server's log")
        error.retry_after_s = min(_MAX_RETRY_AFTER_S, float(wait)) if wait.isdigit() else None
        raise error
    if status >= 400:
        raise RetrieverRejected(f"{url} refused the request ({status}): {reason}", status)
    raise RetrieverBadResponse(f"{url} answered {status}, expected 200; check the url")


def _clean(query: str) -> str:
    """A query as it is sent: cut, lone surrogates replaced, as the index would do it."""
    query = query[:MAX_QUERY_CHARS]
    return query if query.isascii() else query.encode("utf-8", "replace").decode("utf-8")


def _body(encoded_queries: Sequence[str], topk: int) -> bytes:
    return f'{{"queries":[{",".join(encoded_queries)}],"topk":{topk},"return_scores":true}}'.encode("ascii")
