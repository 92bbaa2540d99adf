"""What server and client must agree on: how a Search-R1 response is checked, and the name of the token variable."""

from __future__ import annotations

import ipaddress
import json
import math
import os

from agentrl.retriever.base import Hit
from agentrl.retriever.corpus import parse_passage
from agentrl.retriever.errors import BadQuery, RetrieverBadResponse

TOKEN_VARIABLE = "AGENTRL_RETRIEVER_TOKEN"
"""Environment variable with the bearer token, for the server as for the client."""


def environment_token() -> str | None:
    """The token of AGENTRL_RETRIEVER_TOKEN, `None` where it is not set or empty. Errors never repeat it."""
    return checked_token(os.environ.get(TOKEN_VARIABLE))


def checked_token(token: str | None) -> str | None:
    """`token` without surrounding white space; `BadQuery` where an HTTP header cannot hold it."""
    token = (token or "").strip()
    if not all("!" <= character <= "~" for character in token):
        raise BadQuery(f"the token in {TOKEN_VARIABLE} has spaces or characters that are not ASCII; choose another")
    return token or None


def parse_response(content: bytes, queries: int, topk: int, url: str) -> list[list[Hit]]:
    """The hits of a response with scores to `queries` queries; `RetrieverBadResponse` where the shape is another."""
    try:
        answer = json.loads(content.decode("utf-8"))
        result = answer["result"] if isinstance(answer, dict) and "result" in answer else None
        if not isinstance(result, list) or len(result) != queries:
            raise ValueError(f'expected {{"result": [...]}} with {queries} lists')
        return [_hits(hits, topk) for hits in result]
    except (ValueError, RecursionError, OverflowError) as error:
        start = content[:80].decode("utf-8", "replace")
        raise RetrieverBadResponse(
            f"{url} answered in another format ({error}); is it a Search-R1 retrieval server? It said {start!r}"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hits(hits: object, topk: int) -> list[Hit]:
    if not isinstance(hits, list) or len(hits) > topk:
        raise ValueError(f"expected a list of at most {topk} passages for each query")
    return [_hit(hit) for hit in hits]


def _hit(hit: object) -> Hit:
    if not isinstance(hit, dict) or "document" not in hit:
        raise ValueError('expected {"document": ..., "score": ...} for each passage')
    score = hit.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"a score must be a finite number, not {score!r:.40}")
    return Hit(parse_passage(hit["document"]), float(score))
