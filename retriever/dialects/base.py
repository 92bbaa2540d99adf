"""What a dialect is, and what all of them share: names of the fields, JSON and msgpack, checks.

A body is JSON or msgpack by its first byte: no JSON text begins with the bytes of a msgpack map. The dialect that
answers is the first one that `takes` the request's fields; the last one takes all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from agentrl.errors import DISTRIBUTION, nearest
from agentrl.plugins import find
from agentrl.retriever.base import MAX_QUERY_CHARS, Hit
from agentrl.retriever.corpus import json_kind

#: What a request may hold, each with all its names; the first is the one that is advised.
NAMES: dict[str, tuple[str, ...]] = {
    "queries": ("queries", "query"),
    "topk": ("topk", "top_k", "k"),
    "return_scores": ("return_scores",),
}
BUILT_IN = ("gem", "rllm", "search-r1")
_MSGPACK_MAPS = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
_SLOW_CHECK_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of one request. Search-R1 sends the queries of a whole rollout batch at once, hence 4096."""

    default_topk: int = 3
    max_topk: int = 100
    max_queries: int = 4096
    max_query_chars: int = MAX_QUERY_CHARS
    max_passages: int = 65_536  # queries × topk: bounds the response
    max_body_bytes: int = 16 << 20


class Refused(Exception):
    """The request is at fault: answered with `status` and `reason`."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


@dataclass(frozen=True)
class Wanted:
    """A checked request."""

    queries: list[str]
    topk: int
    return_scores: bool
    fields: frozenset[str]  # the names it used
    msgpack: bool


class Dialect(Protocol):
    """One way to answer. A plug-in is a class without arguments, or an object, of this form."""

    content_type: str

    def takes(self, wanted: Wanted) -> bool:
        """Whether this dialect answers the request."""
        ...

    def render(self, wanted: Wanted, found: Sequence[Sequence[Hit]]) -> bytes:
        """The body of the answer. `found` has one list for each query."""
        ...


def dialects(names: Sequence[str] = ()) -> list[Dialect]:
    """The plug-ins `names`, then the built-in dialects, in the order in which they are asked."""
    made = [find("dialect", name) for name in (*names, *BUILT_IN)]
    return [d() if isinstance(d, type) else d for d in made]


def decode(body: bytes) -> tuple[Mapping[str, Any], bool]:
    """The fields of a body, and whether it is msgpack; `Refused` where it is not an object."""
    packed = bool(body) and body[0] in _MSGPACK_MAPS
    fields = _unpack(body) if packed else _parse(body)
    if not isinstance(fields, dict):
        raise Refused(f"the body must be a JSON object or a msgpack map, not {json_kind(fields)}")
    return fields, packed


def read(body: bytes, limits: Limits) -> Wanted:
    """The checked request of a body; `Refused` with the reason where it is not one."""
    fields, packed = decode(body)
    known = {name: key for key, names in NAMES.items() for name in names}
    used: dict[str, str] = {}
    for name in fields:
        key = known.get(name) if isinstance(name, str) else None
        if key is None:
            hint = nearest(name, list(known)) if isinstance(name, str) else ""
            raise Refused(
                f"unknown key {name!a:.60}{hint or ': the keys are queries or query, topk (top_k, k), return_scores'}"
            )
        if key in used:
            raise Refused(f'give either "{used[key]}" or "{name}", not both')
        used[key] = name
    if "queries" not in used:
        raise Refused('give either "queries" (a list of strings) or "query" (a string)')
    queries = _queries(fields[used["queries"]], used["queries"], limits)
    topk = _topk(fields.get(used.get("topk", "")), used.get("topk", "topk"), limits)
    if topk * len(queries) > limits.max_passages:
        raise Refused(f"{len(queries)} queries × topk {topk} passes {limits.max_passages} passages; split the request")
    scores = fields.get("return_scores", False)
    if not isinstance(scores, bool):
        raise Refused(f'"return_scores" must be true or false, not {json_kind(scores)}')
    return Wanted(queries, topk, scores, frozenset(fields), packed)


def _queries(value: object, name: str, limits: Limits) -> list[str]:
    if name == "query":
        queries = [value]
    elif isinstance(value, list):
        queries = value
    else:
        raise Refused(f'"queries" must be a list of strings, not {json_kind(value)}; for one string use "query"')
    if len(queries) > limits.max_queries:
        raise Refused(f"{len(queries)} queries in one request, at most {limits.max_queries} are taken; split it")
    for position, query in enumerate(queries):
        if not isinstance(query, str):
            raise Refused(f"query {position} must be a string, not {json_kind(query)}")
        if len(query) > limits.max_query_chars:
            raise Refused(
                f"query {position} has {len(query)} characters, at most {limits.max_query_chars} are taken; cut it"
            )
        if not query.isascii():
            surrogate(query, f"query {position}")
    return queries  # type: ignore[return-value]


def _topk(value: object, name: str, limits: Limits) -> int:
    if value is None:
        return min(limits.default_topk, limits.max_topk)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(f'"{name}" must be an integer or null, not {json_kind(value)}')
    if not 1 <= value <= limits.max_topk:
        raise Refused(f'"{name}" must be between 1 and {limits.max_topk}')
    return value


def surrogate(text: str, what: str) -> None:
    """`Refused` where `text` holds a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused(f"{what} has a lone surrogate, \\u{ord(text[error.start]):04x}, which is not text") from None


def rendered(content: object) -> bytes:
    """JSON in UTF-8; ASCII with escapes where a lone surrogate needs them."""
    try:
        return orjson.dumps(content)
    except TypeError:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def document(hit: Hit) -> dict[str, Any]:
    """A passage on the wire; title and text only where the contents do not say them."""
    passage = hit.passage
    out: dict[str, Any] = {"id": passage.id, "contents": passage.contents}
    if passage.given is not None:
        out |= {"title": passage.title, "text": passage.text}
    return out


def score(hit: Hit) -> float:
    """The score, which must be a number: JSON has no other, and a null would be of the wrong shape."""
    if not math.isfinite(hit.score):
        raise ValueError(f"passage {hit.passage.id!r} has the score {hit.score}")
    return float(hit.score)


def scored(hit: Hit, return_scores: bool) -> dict[str, Any]:
    """Search-R1's form of a hit: the document, with its score around it where scores are wanted."""
    return {"document": document(hit), "score": score(hit)} if return_scores else document(hit)


def _parse(body: bytes) -> Any:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(_why_not(body, error)) from None
    if isinstance(fields, dict) and _repeats(body, fields):
        raise Refused("a key appears twice in one object")
    return fields


def _repeats(body: bytes, fields: Mapping[str, Any]) -> bool:
    """Whether a key of the object comes twice; looked at closely only where its name does."""
    if all(body.count(b'"%s"' % name.encode("utf-8", "replace")) < 2 for name in fields) and b"\\u" not in body:
        return False
    if len(body) > _SLOW_CHECK_BYTES:
        return False
    twice = False

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        out = dict(found)
        twice |= len(out) < len(found)
        return out

    json.loads(body, object_pairs_hook=pairs)
    return twice


def _why_not(body: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"the body is not UTF-8 (byte {wrong.start})"
    if "surrogate" in error.msg:
        return f"the body has a lone surrogate, which is not text: {error.msg}"
    return f"the body is not JSON: {error.msg} at character {error.pos}"


def _unpack(body: bytes) -> Any:
    try:
        import msgpack
    except ImportError:
        raise Refused(
            f"msgpack is not installed on the server; send JSON, or install '{DISTRIBUTION}[retriever]' there", 415
        ) from None

    def pairs(found: list[tuple[Any, Any]]) -> dict[Any, Any]:
        out = dict(found)
        if len(out) < len(found):
            raise Refused("a key appears twice in one map")
        return out

    def extension(code: int, data: bytes) -> Any:
        raise Refused(f"the body has a msgpack extension (type {code}); send maps, lists, strings and numbers")

    try:
        return msgpack.unpackb(body, object_pairs_hook=pairs, ext_hook=extension, strict_map_key=True)
    except Refused:
        raise
    except UnicodeDecodeError as error:
        raise Refused(f"a string of the body is not UTF-8 (byte {error.start} of it)") from None
    except Exception as error:  # msgpack's errors share no base; TypeError for a map as a key
        raise Refused(f"the body is not msgpack: {error or type(error).__name__}") from None
