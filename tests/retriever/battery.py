"""Bad requests, as bytes on a socket: what each is, and which answers are right. The bench script times them."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import NamedTuple

import msgpack


class Bad(NamedTuple):
    name: str
    body: bytes
    statuses: tuple[int, ...] = (400,)
    path: str = "/retrieve"
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()


def _json(name: str, statuses: tuple[int, ...] = (400,), **fields: object) -> Bad:
    return Bad(name, json.dumps(fields).encode(), statuses)


def requests() -> list[Bad]:
    nested = b'{"query": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    bombs = {
        "a map of four billion": b"\xdf\xff\xff\xff\xff",
        "an array of four billion": b"\x81\xa7queries\xdd\xff\xff\xff\xff",
        "a string of four billion": b"\x81\xa5query\xdb\xff\xff\xff\xffx",
        "deep arrays": b"\x81\xa5query" + b"\x91" * 100_000,
        "deep maps": b"\x81" * 100_000,
        "an extension": b"\x81\xa5query\xc7\x01\x05x",
        "a timestamp": msgpack.packb({"query": msgpack.Timestamp(0)}),
        "binary for a string": msgpack.packb({"query": b"x"}),
        "bytes behind the map": msgpack.packb({"query": "x"}) + b"\x00",
        "invalid UTF-8": b"\x81\xa5query\xa2\xff\xfe",
        "a number as a key": b"\x81\x01\xa1x",
        "a key twice": b"\x82\xa5query\xa1a\xa5query\xa1b",
        "topk of NaN": msgpack.packb({"query": "x", "topk": float("nan")}),
    }
    values = [None, True, 5, 1.5, [], {}, [["x"]], {"a": 1}]
    return [
        Bad("an empty body", b""),
        Bad("a lone brace", b"{"),
        Bad("null", b"null"),
        Bad("a list", b"[]"),
        Bad("a string", b'"x"'),
        Bad("a number", b"1"),
        Bad("an empty object", b"{}"),
        Bad("a truncated object", b'{"query": "x", "topk": '),
        Bad("two objects", b'{"query": "x"}{"query": "x"}'),
        Bad("single quotes", b"{'query': 'x'}"),
        Bad("form data", b"query=x&topk=3", headers=(("content-type", "application/x-www-form-urlencoded"),)),
        Bad("XML", b"<query>x</query>", headers=(("content-type", "text/xml"),)),
        Bad("random bytes", bytes(range(256)) * 4),
        Bad("invalid UTF-8", b'{"query": "\xff\xfe"}'),
        Bad("UTF-16", '{"query": "x"}'.encode("utf-16")),
        Bad("a byte order mark", b'\xef\xbb\xbf{"query": "x"}'),
        Bad("a lone high surrogate", b'{"query": "\\ud800"}'),
        Bad("a lone low surrogate", b'{"query": "\\udc00 x"}'),
        Bad("a NUL byte unescaped", b'{"query": "\x00"}'),
        Bad("deep nesting", nested),
        Bad("a deep object", b'{"a":' * 50_000),
        *(_json(f"query {v!r}", query=v) for v in values),
        *(_json(f"queries {v!r}", queries=v) for v in (*values[:4], {"a": 1}, "x", [1], ["x", None], [["x"]], [True])),
        *(_json(f"topk {v!r}", query="x", topk=v) for v in (0, -1, 2**40, True, False, "3", 1.5, [3], {}, 10**30)),
        *(
            Bad(f"topk {v}", b'{"query": "x", "topk": %s}' % v.encode())
            for v in ("NaN", "Infinity", "1e400", "-0.0", "0x3")
        ),
        *(_json(f"return_scores {v!r}", query="x", return_scores=v) for v in (1, 0, "true", None, [])),
        _json("both names of queries", query="x", queries=["x"]),
        _json("two names of topk", query="x", topk=1, k=1),
        _json("three names of topk", query="x", topk=1, k=1, top_k=1),
        _json("an unknown key", query="x", nprobe=5),
        _json("a misspelt key", query="x", topK=5),
        _json("a path for an index", query="x", index="/etc/passwd"),
        Bad("a key twice", b'{"query": "a", "query": "b"}'),
        _json("10,000 queries", queries=["x"] * 10_000),
        _json("a query of 5,000 characters", query="x" * 5_000),
        _json("too many passages", queries=["x"] * 4_000, topk=100),
        _json("a query of 10 MB", query="x" * 10_000_000),
        Bad("a body of 20 MB", b" " * 20_000_000, (413,)),
        *(Bad(f"msgpack: {name}", body) for name, body in bombs.items()),
        Bad("an unknown path", b"{}", (404,), "/retrive"),
        Bad("a path that climbs", b"", (404,), "/documents/..%2f..%2fetc%2fpasswd", "GET"),
        Bad("an id that is not UTF-8", b"", (400,), "/documents/%ff", "GET"),
        Bad("a wrong method", b"", (405,), "/retrieve", "GET"),
        Bad("DELETE", b"", (405,), "/retrieve", "DELETE"),
        Bad("urls of numbers", b'{"urls": [1]}', (400,), "/access"),
        Bad("urls of a string", b'{"urls": "x"}', (400,), "/access"),
        Bad("a deadline of nothing", b'{"query": "x"}', headers=(("x-timeout-ms", "0"),)),
        Bad("a deadline of words", b'{"query": "x"}', headers=(("x-timeout-ms", "soon"),)),
        Bad("a length that is a word", b"x", (400,), headers=(("content-length", "abc"),)),
    ]


class Answer(NamedTuple):
    status: int
    body: bytes
    seconds: float  # from the last byte of the request to the last of the answer


def ask(address: tuple[str, int], bad: Bad, timeout_s: float = 20.0) -> Answer:
    """Send one request over a connection of its own."""
    names = {name for name, _ in bad.headers}
    lines = [f"{bad.method} {bad.path} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"{name}: {value}" for name, value in bad.headers]
    lines += [] if "content-length" in names else [f"content-length: {len(bad.body)}"]
    with socket.create_connection(address, timeout=timeout_s) as connection:
        connection.settimeout(timeout_s)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + bad.body)
        begun = time.perf_counter()
        received = b""
        while True:
            try:
                part = connection.recv(1 << 20)
            except ConnectionResetError:
                break
            if not part:
                break
            received += part
        seconds = time.perf_counter() - begun
    head, _, body = received.partition(b"\r\n\r\n")
    return Answer(int(head.split()[1]) if head else 0, body, seconds)


def good(address: tuple[str, int], query: str = "glass") -> Answer:
    """A request that is right."""
    return ask(address, Bad("good", json.dumps({"query": query, "topk": 1}).encode()))
