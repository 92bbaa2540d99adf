"""Search-R1's retrieval server: `POST /retrieve` and `GET /health`.

Request `{"queries": [str] or "query": str, "topk": int or null, "return_scores": bool}`; response
`{"result": [[{"document": {"id", "contents"}, "score": float}]]}`, or the bare documents without `return_scores`.
Whatever else arrives gets a 4xx with `{"error": reason}`; a searcher that fails gives a 503. Requests are untrusted:
everything about them is bounded by `Limits`, and searches run in threads, off the event loop.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
from collections.abc import Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from agentrl.retriever.base import MAX_QUERY_CHARS, Searcher
from agentrl.retriever.corpus import json_kind
from agentrl.retriever.errors import ServeError
from agentrl.retriever.opening import open_index
from agentrl.retriever.wire import TOKEN_VARIABLE, dump_json, environment_token, is_loopback, render_response

_log = logging.getLogger("agentrl.retriever.server")


@dataclass(frozen=True)
class Limits:
    """Bounds of one request. Search-R1 sends the queries of a whole rollout batch at once, hence 4096."""

    default_topk: int = 3
    max_topk: int = 100
    max_queries: int = 4096
    max_query_chars: int = MAX_QUERY_CHARS
    max_passages: int = 65_536  # queries × topk: bounds the response
    max_body_bytes: int = 16 << 20
    threads: int = 4  # searches at a time; more requests wait


@dataclass(frozen=True)
class _Query:
    queries: list[str]
    topk: int
    return_scores: bool


class _Refused(Exception):
    """The request is at fault: answered with `status` and `reason`."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


def create_app(searcher: Searcher, limits: Limits = Limits(), *, token: str | None = None) -> Starlette:
    """The ASGI application around `searcher`. With a `token`, /retrieve asks for it, /health refuses a wrong one."""
    pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="search")

    async def retrieve(request: Request) -> Response:
        try:
            _authorise(request, token, required=True)
            body = await _body(request, limits.max_body_bytes)
            answer = await asyncio.get_running_loop().run_in_executor(pool, _answer, searcher, body, limits)
            return Response(answer, media_type="application/json")
        except _Refused as refused:
            return _error(refused.status, refused.reason)
        except ClientDisconnect:
            return _error(400, "the connection closed before the request was complete")
        except Exception as error:
            _log.exception("a search failed")
            return _error(503, f"the search failed on the server ({type(error).__name__}); its log says why")

    async def health(request: Request) -> Response:
        try:
            _authorise(request, token, required=False)
        except _Refused as refused:
            return _error(refused.status, refused.reason)
        size = len(searcher) if isinstance(searcher, Sized) else None
        return Response(dump_json({"status": "ok", "passages": size}), media_type="application/json")

    async def refused_by_routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _error(error.status_code, f"{request.method} {request.url.path}: use POST /retrieve or GET /health")

    app = Starlette(
        routes=[Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health, methods=["GET"])],
        exception_handlers={HTTPException: refused_by_routing},
    )
    app.router.redirect_slashes = False
    return app


def serve(
    index_path: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    limits: Limits = Limits(),
    say: Callable[[str], object] = print,
) -> None:
    """Serve the index until SIGINT or SIGTERM. Port 0 takes a free one; the address is said once it accepts calls.

    `ServeError` where the port is taken, or `host` is not a loopback address and `AGENTRL_RETRIEVER_TOKEN` is not set.
    """
    token = environment_token()
    if token is None and not is_loopback(host):
        raise ServeError(
            f"host {host!r} can be reached from other machines: set {TOKEN_VARIABLE} to a secret, "
            "for the server and its clients, or serve on 127.0.0.1"
        )
    index = open_index(index_path)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise ServeError(f"cannot listen on {host} port {port} ({error}); choose another with --port") from error
    # asyncio does this only for sockets of an explicit protocol; without it each small answer waits 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            create_app(index, limits, token=token),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=60,  # longer than clients keep a connection, so that none is closed under a request
            timeout_graceful_shutdown=5,
        )
        say(f"serving {len(index):,} passages at http://{shown}:{listener.getsockname()[1]} (Ctrl-C stops)")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            say("stopped")


def parse_request(body: bytes, limits: Limits) -> _Query:
    """The checked request; `_Refused` with the reason where it is not one."""
    fields = _decode(body)
    if not isinstance(fields, dict):
        raise _Refused(f"the body must be a JSON object, not {json_kind(fields)}")
    unknown = fields.keys() - {"queries", "query", "topk", "return_scores"}
    if unknown:
        raise _Refused(f"unknown key {min(unknown)!a:.60}: the keys are queries or query, topk, return_scores")
    if ("query" in fields) == ("queries" in fields):
        raise _Refused('give either "queries" (a list of strings) or "query" (a string)')
    queries = fields["queries"] if "queries" in fields else [fields["query"]]
    if not isinstance(queries, list):
        raise _Refused(f'"queries" must be a list of strings, not {json_kind(queries)}; for one string use "query"')
    if len(queries) > limits.max_queries:
        raise _Refused(f"{len(queries)} queries in one request, at most {limits.max_queries} are taken; split it")
    for position, query in enumerate(queries):
        if not isinstance(query, str):
            raise _Refused(f"query {position} must be a string, not {json_kind(query)}")
        if len(query) > limits.max_query_chars:
            raise _Refused(
                f"query {position} has {len(query)} characters, at most {limits.max_query_chars} are taken; cut it"
            )
    topk = fields.get("topk")
    if topk is None:
        topk = min(limits.default_topk, limits.max_topk)
    if isinstance(topk, bool) or not isinstance(topk, int):
        raise _Refused(f'"topk" must be an integer or null, not {json_kind(topk)}')
    if not 1 <= topk <= limits.max_topk:
        raise _Refused(f'"topk" must be between 1 and {limits.max_topk}')
    if topk * len(queries) > limits.max_passages:
        raise _Refused(f"{len(queries)} queries × topk {topk} passes {limits.max_passages} passages; split the request")
    return_scores = fields.get("return_scores", False)
    if not isinstance(return_scores, bool):
        raise _Refused(f'"return_scores" must be true or false, not {json_kind(return_scores)}')
    return _Query(queries, topk, return_scores)


def _decode(body: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise _Refused("a key appears twice in one object")
        return fields

    def no_constant(name: str) -> None:
        raise _Refused(f"{name} is not JSON")

    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise _Refused(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise _Refused("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _Refused(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # an integer of more digits than Python reads
        raise _Refused("the body has a number out of range") from None


async def _body(request: Request, limit: int) -> bytes:
    """The whole body, counted as it arrives: a chunked request announces no length."""
    too_large = _Refused(f"the body is larger than {limit} bytes; split the request", 413)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _authorise(request: Request, token: str | None, *, required: bool) -> None:
    if token is None:
        return
    given = request.headers.get("authorization")
    if given is None and not required:
        return
    if given is None:
        raise _Refused(f"a bearer token is needed: set {TOKEN_VARIABLE} on the client to the server's", 401)
    if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {token}".encode()):
        raise _Refused(f"the bearer token is wrong: set {TOKEN_VARIABLE} on the client to the server's", 401)


def _answer(searcher: Searcher, body: bytes, limits: Limits) -> bytes:
    """Everything that takes time, decoding and encoding of megabytes included; runs in a thread."""
    wanted = parse_request(body, limits)
    found = searcher.search_batch(wanted.queries, wanted.topk)
    if len(found) != len(wanted.queries):
        raise RuntimeError(f"{type(searcher).__name__} gave {len(found)} lists for {len(wanted.queries)} queries")
    return render_response(found, wanted.return_scores)


def _error(status: int, reason: str) -> Response:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return Response(dump_json({"error": reason}), status, headers, media_type="application/json")
