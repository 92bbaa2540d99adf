"""Client of a Search-R1 retrieval server, such as `agentrl retriever serve`.

There is one code path, the asynchronous one; synchronous calls run it on a private loop in a thread, so that the
deadline is exact there too, also against a server that sends a byte a second. A call is retried on failed connections,
timeouts and 5xx with full jitter (uniform between 0 and an exponentially growing cap), never on 4xx.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any, Self, TypeVar

import httpx

from agentrl.retriever.base import MAX_QUERY_CHARS, Hit, check_request
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
_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 2.0
_MAX_CONNECTIONS = 256  # of one event loop
_SAY_EVERY_S = 3.0


class RetrieverClient:
    """A `Searcher` over HTTP. One object serves many threads and event loops; connections are pooled per loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        retries: int | None = 3,
        attempt_timeout_s: float | None = None,
        max_queries: int = 512,
        max_body_bytes: int = 8 << 20,
        max_response_bytes: int = 256 << 20,
        token: str | None = None,
    ) -> None:
        """`url` is the server's base, with or without a final `/retrieve`.

        `timeout_s` bounds a whole call, retries included; `attempt_timeout_s` one attempt (default: what is left of the
        call). `retries` None tries again until `timeout_s` has passed. More than `max_queries` queries, or a body
        beyond `max_body_bytes`, are sent as several requests. `token` defaults to the environment variable
        AGENTRL_RETRIEVER_TOKEN.
        """
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL:
            parts = httpx.URL("")
        if parts.scheme not in ("http", "https") or not parts.host:
            raise BadQuery(f"url {url!r}: expected http://HOST:PORT, for example http://127.0.0.1:8000")
        if parts.userinfo:
            raise BadQuery(f"the url of {parts.host} holds a password, which logs would show: use {TOKEN_VARIABLE}")
        if timeout_s <= 0 or (retries is not None and retries < 0) or max_queries < 1:
            raise BadQuery(
                f"timeout_s = {timeout_s}, retries = {retries}, max_queries = {max_queries}: they must be > 0, ≥ 0, ≥ 1"
            )
        self.url = url.rstrip("/").removesuffix("/retrieve")
        self.timeout_s, self.retries = timeout_s, retries
        self._attempt_timeout_s = attempt_timeout_s or timeout_s
        self._max_queries, self._max_body_bytes = max_queries, max_body_bytes
        self._max_response_bytes = max_response_bytes
        self._options: dict[str, Any] = {
            "timeout_s": timeout_s,
            "retries": retries,
            "attempt_timeout_s": attempt_timeout_s,
            "max_queries": max_queries,
            "max_body_bytes": max_body_bytes,
            "max_response_bytes": max_response_bytes,
        }
        token = checked_token(token) or environment_token()
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        self._direct = is_loopback(parts.host)
        self._random = random.Random()  # of its own: jitter must not consume the run's seeded stream
        self._pools: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}
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
        failures: list[RetrieverError] = []
        found: list[list[Hit]] = []
        try:
            async with asyncio.timeout(self.timeout_s):
                for count, body in self._requests(queries, topk):
                    answer = await self._post(body, failures)
                    found += parse_response(answer, count, topk, self.url)
        except TimeoutError:
            last = f"; last failure: {failures[-1]}" if failures else ""
            raise RetrieverTimeout(
                f"{self.url} did not answer {len(queries)} queries within {self.timeout_s:g} s{last}; "
                "raise the timeout or look at the server's log"
            ) from None
        return found

    def wait_until_ready(self, timeout_s: float = 60.0, say: Callable[[str], object] = print) -> None:
        """Block until the server answers, saying aloud what is waited for; `RetrieverUnavailable` after `timeout_s`.

        A server without /health (Search-R1's own has none) is ready when it answers one query.
        """
        self._run(self._wait(timeout_s, say))

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
        # ASCII with escapes, so that lone surrogates survive; 64 bytes are more than the other keys take.
        encoded = [json.dumps(query[:MAX_QUERY_CHARS]) for query in queries]
        start, size = 0, 64
        for position, query in enumerate(encoded):
            full = position - start == self._max_queries or size + len(query) + 1 > self._max_body_bytes
            if full and position > start:
                yield position - start, _body(encoded[start:position], topk)
                start, size = position, 64
            size += len(query) + 1
        if start < len(encoded):
            yield len(encoded) - start, _body(encoded[start:], topk)

    async def _post(self, body: bytes, failures: list[RetrieverError]) -> bytes:
        for attempt in count() if self.retries is None else range(self.retries + 1):
            try:
                return await self._attempt("POST", "/retrieve", body)
            except RetrieverUnavailable as error:
                failures.append(error)
            if attempt != self.retries:
                await asyncio.sleep(self._random.uniform(0, min(_MAX_BACKOFF_S, _BACKOFF_S * 2 ** min(attempt, 10))))
        raise failures[-1]

    async def _attempt(self, method: str, path: str, body: bytes | None) -> bytes:
        """The body of a 200. `RetrieverUnavailable` where another attempt may help, another error where not."""
        url = self.url + path
        try:
            async with (
                asyncio.timeout(self._attempt_timeout_s),
                self._pool().stream(method, url, content=body) as response,
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
        return self._checked(url, response.status_code, bytes(content))

    def _checked(self, url: str, status: int, content: bytes) -> bytes:
        if status == 200:
            return content
        reason = content[:200].decode("utf-8", "replace")
        if status >= 500:
            raise RetrieverUnavailable(f"{url} answered {status}: {reason}; look at the server's log")
        if status >= 400:
            raise RetrieverRejected(f"{url} refused the request ({status}): {reason}", status)
        raise RetrieverBadResponse(f"{url} answered {status}, expected 200; check the url")

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
        try:
            await self._attempt("GET", "/health", None)
        except RetrieverRejected as error:
            if error.status not in (404, 405):
                raise
            parse_response(await self._attempt("POST", "/retrieve", _body(['"ready"'], 1)), 1, 1, self.url)

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
                verify=self.url.startswith("https"),  # over plain http, loading certificates costs 50 ms for nothing
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


def _body(encoded_queries: Sequence[str], topk: int) -> bytes:
    return f'{{"queries":[{",".join(encoded_queries)}],"topk":{topk},"return_scores":true}}'.encode("ascii")
