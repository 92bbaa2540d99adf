"""The retrieval server's application, in plain ASGI: what each path answers.

`POST /retrieve` in the dialect of whoever asks (`dialects`), `POST /access` and `GET /documents/{id}` for agents that
open a document, `GET /health` (and /healthz), `GET /metrics`. Whatever else arrives gets a 4xx with
`{"error": reason}`, a searcher that fails a 503, a deadline that cannot be met the overload status with Retry-After.
Requests are untrusted: everything about them is bounded by `Limits`, and no path of a file is ever taken from one. A
client says how long it waits with `x-timeout-ms`, and may name its request with `x-request-id`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from agentrl.errors import nearest
from agentrl.retriever.base import Hit, Searcher
from agentrl.retriever.corpus import Passage, json_kind
from agentrl.retriever.dialects.base import Dialect, Limits, Refused, Wanted, decode, dialects, document, read, rendered
from agentrl.retriever.dialects.base import surrogate as check_surrogate
from agentrl.retriever.metrics import Metrics
from agentrl.retriever.scheduling import Overloaded, Scheduler
from agentrl.retriever.wire import TOKEN_VARIABLE

_log = logging.getLogger("agentrl.retriever.server")
_PATHS = {"/retrieve": "POST", "/access": "POST", "/health": "GET", "/healthz": "GET", "/metrics": "GET"}
_USE = "use POST /retrieve or /access, or GET /documents/ID, /health or /metrics"
_DOCUMENTS = "/documents/"
_JSON = b"application/json"
_MAX_ID_CHARS = 1_024

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Manners:
    """How the server treats its clients, besides the bounds of a request."""

    deadline_s: float = 30.0  # of a request that names none
    read_s: float = 10.0  # for a body to arrive
    overload_status: int = 503
    log: Callable[[str], object] | None = None  # gets a line for each request
    log_queries: bool = False  # with the text of its queries


@dataclass
class _Answer:
    status: int
    body: bytes
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    note: str = ""  # for the access log


class App:
    """The ASGI application around a searcher. Make it on the event loop that serves it, or on none yet."""

    def __init__(
        self,
        searcher: Searcher,
        limits: Limits = Limits(),  # noqa: B008
        *,
        token: str | None = None,
        manners: Manners = Manners(),
        metrics: Metrics | None = None,
        dialect_names: Sequence[str] = (),
        cache: int = 8_192,
        max_batch: int = 64,
    ) -> None:
        """With a `token`, all but /health ask for it, and that one refuses a wrong one."""
        self.metrics = metrics or Metrics()
        self._searcher, self._limits, self._token, self._manners = searcher, limits, token, manners
        self._dialects: list[Dialect] = dialects(dialect_names)
        self.scheduler = Scheduler(searcher, cache=cache, max_batch=max_batch, metrics=self.metrics)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        begun = time.perf_counter()
        headers = dict(scope["headers"])
        try:
            answer = await self._answer(scope, headers, receive)
        except Refused as refused:
            answer = _error(refused.status, refused.reason)
        except _Gone:
            self.metrics.add("disconnected_total")
            return
        except Overloaded as error:
            self.metrics.add("overload_total")
            wait = b"%d" % max(1, round(error.retry_after_s))
            answer = _error(self._manners.overload_status, str(error), ((b"retry-after", wait),))
        except Exception as error:
            self.metrics.add("failed_total")
            _log.exception("a search failed")
            answer = _error(503, f"the search failed on the server ({type(error).__name__}); its log says why")
        seconds = time.perf_counter() - begun
        self.metrics.add("requests_total")
        if 400 <= answer.status < 500:
            self.metrics.add("refused_total")
        if scope["path"] == "/retrieve":
            self.metrics.latency(seconds)
        if self._manners.log is not None:
            self._manners.log(_line(scope, headers, answer, seconds))
        request_id = headers.get(b"x-request-id")
        own = ((b"x-request-id", request_id[:200]),) if request_id is not None else ()
        length = (b"content-length", b"%d" % len(answer.body))
        start = [(b"content-type", answer.content_type), length, *answer.headers, *own]
        await send({"type": "http.response.start", "status": answer.status, "headers": start})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    async def _answer(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], receive: Receive) -> _Answer:
        path, method = scope["path"], scope["method"]
        needed = "GET" if path.startswith(_DOCUMENTS) else _PATHS.get(path)
        if needed is None:
            raise Refused(f"{method} {path[:100]!a}: {_USE}{nearest(path, list(_PATHS))}", 404)
        if method != needed and not (method == "HEAD" and needed == "GET"):
            raise Refused(f"{method} {path[:100]!a}: {_USE}", 405)
        self._authorise(headers, required=not path.startswith("/health"))
        if path == "/retrieve":
            return await self._retrieve(headers, receive)
        if path == "/access":
            return await self._access(await self._body(headers, receive))
        if path == "/metrics":
            return _Answer(200, self.metrics.render(), b"text/plain; version=0.0.4")
        if path in ("/health", "/healthz"):
            return _Answer(200, rendered(self._health()))
        return await self._open(scope)

    async def _retrieve(self, headers: Mapping[bytes, bytes], receive: Receive) -> _Answer:
        deadline = time.monotonic() + self._timeout_s(headers)
        wanted = read(await self._body(headers, receive), self._limits)
        search = self.scheduler.search(wanted.queries, wanted.topk, deadline)
        found = await (search if self.scheduler.in_place else _unless_gone(search, receive))
        dialect = next(d for d in self._dialects if d.takes(wanted))
        self.metrics.add("queries_total", len(wanted.queries))
        return _Answer(
            200, dialect.render(wanted, found), dialect.content_type.encode("ascii"), note=self._note(wanted)
        )

    async def _access(self, body: bytes) -> _Answer:
        """ASearcher's `/access`: `{"urls": [...]}`, here ids, to one document or null for each."""
        fields, packed = decode(body)
        if packed:
            raise Refused("/access takes JSON", 415)
        unknown = min(map(str, set(fields) - {"urls", "ids"}), default="")
        if unknown or len(fields) != 1:
            hint = nearest(unknown, ["urls", "ids"])
            raise Refused(f'{f"unknown key {unknown!a:.60}: " if unknown else ""}give "urls", a list of ids{hint}')
        (wanted,) = fields.values()
        if not isinstance(wanted, list) or not all(isinstance(w, str) for w in wanted):
            raise Refused(f'"{next(iter(fields))}" must be a list of strings, not {json_kind(wanted)}')
        if len(wanted) > self._limits.max_topk:
            raise Refused(
                f"{len(wanted)} documents in one request, at most {self._limits.max_topk} are opened; split it"
            )
        return _Answer(200, rendered({"result": [_page(await self._document(identifier)) for identifier in wanted]}))

    async def _open(self, scope: Mapping[str, Any]) -> _Answer:
        raw = scope.get("raw_path") or scope["path"].encode("utf-8")
        try:
            identifier = unquote(raw.partition(b"?")[0].decode("ascii"), errors="strict").removeprefix(_DOCUMENTS)
        except UnicodeDecodeError as error:
            raise Refused(f"the id is not UTF-8 ({error.reason})") from None
        found = await self._document(identifier)
        if found is None:
            raise Refused(
                f"there is no document {identifier[:80]!a}; ids are those of the passages that /retrieve gives", 404
            )
        return _Answer(200, rendered(_page(found)))

    async def _document(self, identifier: str) -> Passage | None:
        if len(identifier) > _MAX_ID_CHARS:
            raise Refused(f"an id has {len(identifier)} characters, at most {_MAX_ID_CHARS} are taken")
        check_surrogate(identifier, "an id")
        find = getattr(self._searcher, "document", None)
        if find is None:
            raise Refused("this searcher cannot open documents by id", 404)
        self.metrics.add("documents_total")
        blocks = getattr(self._searcher, "in_thread", False)
        found: Passage | None = await asyncio.to_thread(find, identifier) if blocks else find(identifier)
        return found

    def _health(self) -> dict[str, Any]:
        describe = getattr(self._searcher, "describe", None)
        size = len(self._searcher) if isinstance(self._searcher, Sized) else None
        return {"status": "ok", "ready": True, "passages": size} | (describe() if describe is not None else {})

    def _timeout_s(self, headers: Mapping[bytes, bytes]) -> float:
        given = headers.get(b"x-timeout-ms")
        if given is None:
            return self._manners.deadline_s
        if not given.isdigit() or len(given) > 9 or int(given) == 0:
            raise Refused("x-timeout-ms must be a positive number of milliseconds")
        return int(given) / 1000

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, counted as it arrives: a chunked request announces no length."""
        limit = self._limits.max_body_bytes
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > limit:
            raise Refused(f"the body is larger than {limit} bytes; split the request", 413)
        message = await self._part(receive, self._manners.read_s)
        if not message.get("more_body"):
            body = message.get("body", b"")
            if len(body) > limit:
                raise Refused(f"the body is larger than {limit} bytes; split the request", 413)
            return bytes(body)
        until = time.monotonic() + self._manners.read_s
        whole = bytearray(message.get("body", b""))
        while message.get("more_body"):
            message = await self._part(receive, until - time.monotonic())
            whole += message.get("body", b"")
            if len(whole) > limit:
                raise Refused(f"the body is larger than {limit} bytes; split the request", 413)
        return bytes(whole)

    async def _part(self, receive: Receive, seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError:
            raise Refused(f"the body did not arrive within {self._manners.read_s:g} s", 408) from None
        if message["type"] == "http.disconnect":
            raise _Gone
        return message

    def _authorise(self, headers: Mapping[bytes, bytes], *, required: bool) -> None:
        if self._token is None:
            return
        given = headers.get(b"authorization")
        if given is None and not required:
            return
        if given is None:
            raise Refused(f"a bearer token is needed: set {TOKEN_VARIABLE} on the client to the server's", 401)
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise Refused(f"the bearer token is wrong: set {TOKEN_VARIABLE} on the client to the server's", 401)

    def _note(self, wanted: Wanted) -> str:
        if self._manners.log is None:
            return ""
        note = f"queries={len(wanted.queries)} topk={wanted.topk}"
        return f"{note} {wanted.queries!a}" if self._manners.log_queries else note


class _Gone(Exception):
    """The client hung up."""


async def _unless_gone(search: Awaitable[list[list[Hit]]], receive: Receive) -> list[list[Hit]]:
    """What `search` finds; it is cancelled, and `_Gone` raised, when the client hangs up first."""
    searching = asyncio.ensure_future(search)
    watching = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait((searching, watching), return_when=asyncio.FIRST_COMPLETED)
        if not searching.done():
            raise _Gone
        return searching.result()
    finally:
        watching.cancel()
        searching.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _page(passage: Passage | None) -> dict[str, Any] | None:
    """A document as `/access` and `/documents` give it; `page` is ASearcher's name of the contents."""
    if passage is None:
        return None
    return document(Hit(passage, 0.0)) | {"title": passage.title, "text": passage.text, "page": passage.contents}


def _error(status: int, reason: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> _Answer:
    if status == 401:
        headers = (*headers, (b"www-authenticate", b"Bearer"))
    return _Answer(status, rendered({"error": reason}), headers=headers)


def _line(scope: Mapping[str, Any], headers: Mapping[bytes, bytes], answer: _Answer, seconds: float) -> str:
    """A line of the access log: no text of queries, ids or answers but what `note` holds."""
    client = (scope.get("client") or ("-",))[0]
    path = _DOCUMENTS if scope["path"].startswith(_DOCUMENTS) else scope["path"][:40]
    name = headers.get(b"x-request-id", b"-")[:64].decode("ascii", "replace")
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    parts = [
        now,
        client,
        scope["method"],
        ascii(path)[1:-1],
        str(answer.status),
        f"{1e3 * seconds:.1f}ms",
        f"id={ascii(name)[1:-1]}",
    ]
    return " ".join(p for p in [*parts, answer.note] if p)
