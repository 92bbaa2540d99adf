import asyncio
import json
import os
import signal
import threading

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrl.retriever.base import Hit
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.building import build_index
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.corpus import Passage
from agentrl.retriever.dialects.base import Limits
from agentrl.retriever.errors import IndexOpenError, ServeError
from agentrl.retriever.server import App
from agentrl.retriever.serving import Service, serve
from tests.retriever.helpers import PASSAGES, Fake, server_process

LIMITS = Limits(max_topk=7, max_queries=4, max_query_chars=50, max_passages=20, max_body_bytes=2000)
APP = App(Bm25Index.from_passages(PASSAGES), LIMITS)


def call(content, *, app=APP, method="POST", path="/retrieve", headers=None) -> httpx.Response:
    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(send())


def assert_shape(body: bytes, response: httpx.Response) -> None:
    """A right-shaped 200 for a request that was right, or a 4xx with a reason."""
    answer = response.json()
    if response.status_code != 200:
        assert 400 <= response.status_code < 500
        assert list(answer) == ["error"] and answer["error"]
        return
    request = json.loads(body)
    queries = request["queries"] if "queries" in request else [request["query"]]
    assert list(answer) == ["result"] and len(answer["result"]) == len(queries)
    for documents in answer["result"]:
        assert len(documents) <= (request.get("topk") or 3)
        for document in documents:
            if request.get("return_scores"):
                assert document.keys() == {"document", "score"} and document["score"] > 0
                document = document["document"]
            assert document.keys() == {"id", "contents"}
            assert document["contents"] == next(p.contents for p in PASSAGES if p.id == document["id"])


def test_both_return_scores_modes():
    found = call(b'{"queries": ["Brightkiln", "nothing of it"], "topk": 2, "return_scores": true}').json()
    (first, second), empty = found["result"]
    assert first["document"] == {"id": "c", "contents": '"Brightkiln"\n' + PASSAGES[2].text}
    assert first["score"] > second["score"] > 0 and len(empty) <= 2
    bare = call(b'{"query": "Brightkiln"}').json()
    assert [document["id"] for document in bare["result"][0]] == ["c", "a"]
    assert bare["result"][0][0] == first["document"]
    assert call(b'{"queries": []}').json() == {"result": []}
    assert call(b'{"queries": ["glass"], "topk": null, "return_scores": false}').status_code == 200
    assert call(b'{"query": "glass"}', headers={"content-type": "text/plain"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe{}", 400, "not UTF-8 (byte 0)"),
        (b"\xef\xbb\xbf{}", 400, "not JSON"),
        (b"[" * 1900, 400, "not JSON"),
        (b'{"a":' * 390, 400, "not JSON"),
        (b"[]", 400, "must be a JSON object or a msgpack map, not a list"),
        (b"null", 400, "not null"),
        (b"{}", 400, 'give either "queries"'),
        (b'{"query": "a", "queries": ["a"]}', 400, 'give either "query" or "queries", not both'),
        (b'{"query": "a", "query": "b"}', 400, "appears twice"),
        (b'{"query": "a", "qu\\u0065ry": "b"}', 400, "appears twice"),
        (b'{"query": "a", "top_k": 1, "k": 1}', 400, 'give either "top_k" or "k", not both'),
        (b'{"query": "a\\ud800"}', 400, "lone surrogate"),
        (b'{"query": "a", "topkk": 1}', 400, "unknown key 'topkk'; did you mean 'topk'?"),
        (b'{"query": "a", "\\ud800": 1}', 400, "lone surrogate"),
        (b'{"query": "a", "return_scors": true}', 400, "did you mean 'return_scores'?"),
        (b'{"query": ["a"]}', 400, "query 0 must be a string, not a list"),
        (b'{"queries": "a"}', 400, '"queries" must be a list of strings, not a string'),
        (b'{"queries": ["a", null]}', 400, "query 1 must be a string, not null"),
        (b'{"queries": [true]}', 400, "not a boolean"),
        (b'{"queries": ["a", "a", "a", "a", "a"]}', 400, "5 queries in one request, at most 4"),
        (b'{"query": "' + b"a" * 51 + b'"}', 400, "51 characters, at most 50"),
        (b'{"query": "a", "topk": 0}', 400, "between 1 and 7"),
        (b'{"query": "a", "topk": 8}', 400, "between 1 and 7"),
        (b'{"query": "a", "topk": -1}', 400, "between 1 and 7"),
        (b'{"query": "a", "topk": true}', 400, "not a boolean"),
        (b'{"query": "a", "topk": 1.0}', 400, '"topk" must be an integer'),
        (b'{"query": "a", "topk": "3"}', 400, '"topk" must be an integer'),
        (b'{"query": "a", "topk": NaN}', 400, "not JSON"),
        (b'{"query": "a", "topk": -Infinity}', 400, "not JSON"),
        (b'{"query": "a", "topk": 1e999}', 400, "not JSON"),
        (b'{"query": "a", "topk": ' + b"9" * 100 + b"}", 400, '"topk" must be an integer'),
        (b'{"query": "a", "topk": 1099511627776}', 400, "between 1 and 7"),
        (b'{"query": "a", "return_scores": 1}', 400, '"return_scores" must be true or false'),
        (b'{"query": "a", "return_scores": null}', 400, '"return_scores" must be true or false'),
        (b'{"queries": ["a", "b", "c"], "topk": 7}', 400, "passes 20 passages"),
        (b" " * 2001, 413, "larger than 2000 bytes"),
    ],
)
def test_bad_requests_get_a_reason(body, status, reason):
    response = call(body)
    assert response.status_code == status
    assert reason in response.json()["error"]
    assert_shape(body, response)


def test_integer_of_too_many_digits():
    response = call(b'{"query": "a", "topk": ' + b"9" * 5000 + b"}", app=App(Fake()))
    assert (response.status_code == 400 and "not JSON" in response.json()["error"]) or "an integer" in response.json()[
        "error"
    ]


def test_chunked_body_is_counted():
    async def chunks():
        for _ in range(100):
            yield b" " * 100

    assert call(chunks()).status_code == 413


def test_methods_and_paths():
    for method, path, status in [
        ("GET", "/retrieve", 405),
        ("POST", "/health", 405),
        ("GET", "/", 404),
        ("POST", "/retrieve/", 404),
    ]:
        response = call(b"{}", method=method, path=path)
        assert response.status_code == status
        assert "use POST /retrieve or /access, or GET /documents/ID, /health or /metrics" in response.json()["error"]
    assert call(b"", method="GET", path="/health").json() == {"status": "ok", "ready": True, "passages": 5}


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=60)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "queries": st.lists(st.text(st.characters(exclude_categories=[]), max_size=55), max_size=5) | JSON,
        "query": st.text(st.characters(exclude_categories=[]), max_size=55) | JSON,
        "topk": st.none() | st.integers(-1, 9) | JSON,
        "return_scores": st.booleans() | JSON,
    },
)


@settings(deadline=None, max_examples=150)
@given(REQUESTS | JSON)
@example({"queries": ["kiln\x00"], "return_scores": True})
def test_any_json_gets_a_right_shaped_answer(request):
    body = json.dumps(request).encode()
    assert_shape(body, call(body))


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_any_bytes_get_a_reason(body):
    response = call(body)
    assert 400 <= response.status_code < 500 and response.json()["error"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=50), max_size=4), st.integers(1, 5))
def test_right_requests_are_never_refused(queries, topk):
    body = json.dumps({"queries": queries, "topk": topk}).encode()
    response = call(body)
    assert response.status_code == 200
    assert_shape(body, response)


class Surrogate(Fake):
    def search_batch(self, queries, topk):
        return [[Hit(Passage("\udc00", "\ud800", "\x00"), 1.0)] for _ in queries]


class Infinite(Fake):
    def search_batch(self, queries, topk):
        return [[Hit(PASSAGES[0], float("nan"))] for _ in queries]


class Short(Fake):
    def search_batch(self, queries, topk):
        return []


def test_passages_with_lone_surrogates_are_answered():
    response = call(b'{"query": "x"}', app=App(Surrogate()))
    assert response.json() == {"result": [[{"id": "\udc00", "contents": '"\ud800"\n\x00'}]]}


@pytest.mark.parametrize("searcher", [Fake(IndexOpenError("secret path")), Infinite(), Short()])
def test_a_failing_searcher_is_503_without_its_details(searcher):
    response = call(b'{"query": "x", "return_scores": true}', app=App(searcher))
    assert response.status_code == 503
    assert "its log says why" in response.json()["error"] and "secret" not in response.text


def test_a_slow_search_does_not_block_the_loop():
    release = threading.Event()

    class Slow(Fake):
        def search_batch(self, queries, topk):
            assert release.wait(20)
            return super().search_batch(queries, topk)

    async def both():
        transport = httpx.ASGITransport(App(Slow(quick=False)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            search = asyncio.create_task(client.post("/retrieve", json={"query": "x"}))
            await asyncio.sleep(0.05)
            health = await client.get("/health")
            assert not search.done()
            release.set()
            return health, await search

    health, search = asyncio.run(both())
    assert health.json() == {"status": "ok", "ready": True, "passages": None} and search.status_code == 200


def test_token():
    app = App(Fake(), token="s3cret")
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "s3cret"},
        {"authorization": b"Bearer \xff"},
    ):
        response = call(b'{"query": "x"}', app=app, headers=headers)
        assert response.status_code == 401 and "AGENTRL_RETRIEVER_TOKEN" in response.json()["error"]
        assert response.headers["www-authenticate"] == "Bearer" and "s3cret" not in response.text
    assert call(b'{"query": "x"}', app=app, headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert call(b"", app=app, method="GET", path="/health").status_code == 200
    wrong = {"authorization": "Bearer wrong"}
    assert call(b"", app=app, method="GET", path="/health", headers=wrong).status_code == 401


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("server") / "index"
    build_index(PASSAGES, path)
    return path


def test_serve_refuses_a_public_address_without_a_token_and_a_taken_port(index, monkeypatch):
    monkeypatch.delenv("AGENTRL_RETRIEVER_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "example.org", ""):
        with pytest.raises(ServeError, match="set AGENTRL_RETRIEVER_TOKEN to a secret"):
            serve(index, Service(host=host))
    monkeypatch.setenv("AGENTRL_RETRIEVER_TOKEN", "")
    with pytest.raises(ServeError, match="set AGENTRL_RETRIEVER_TOKEN"):
        serve(index, Service(host="0.0.0.0"))
    with server_process(index) as (url, _), pytest.raises(ServeError, match="choose another with --port"):
        serve(index, Service(port=int(url.rpartition(":")[2])))
    with pytest.raises(ServeError, match="choose another"):
        serve(index, Service(port=99999))


def test_over_a_real_socket(index):
    with server_process(index, "--topk", "1") as (url, process), httpx.Client(base_url=url) as client:
        health = client.get("/healthz").json()
        assert health == client.get("/health").json()
        assert health["ready"] and (health["passages"], health["kind"], health["encoder"]) == (5, "bm25", None)
        assert "tantivy" in health["versions"]
        assert len(health["corpus"]) == 64
        with RetrieverClient(url) as ours:
            assert ours.describe() == health
        found = client.post("/retrieve", json={"queries": ["Brightkiln", "Torvik"], "topk": 2, "return_scores": True})
        assert [[hit["document"]["id"] for hit in hits] for hits in found.json()["result"]] == [["c", "a"], ["b", "a"]]
        assert len(client.post("/retrieve", json={"query": "Torvik"}).json()["result"][0]) == 1  # --topk

        def chunks():
            for _ in range(20):
                yield b" " * (1 << 20)

        for content in (chunks(), b" " * (17 << 20)):
            response = client.post("/retrieve", content=content)
            assert response.status_code == 413 and "16777216 bytes" in response.json()["error"]
        assert client.post("/retrieve", content=b'{"query": "\\ud800 kilns"}').status_code == 400
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stdout.read() == "stopped\n"


def test_a_public_address_with_a_token_and_nothing_logged(index):
    env = os.environ | {"AGENTRL_RETRIEVER_TOKEN": "s3cret"}
    with server_process(index, "--host", "0.0.0.0", env=env) as (url, process):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.post(f"{url}/retrieve", json={"query": "x"}).status_code == 401
        headers = {"authorization": "Bearer s3cret"}
        assert httpx.post(f"{url}/retrieve", json={"query": "x"}, headers=headers).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        assert "s3cret" not in process.stdout.read()
