"""What each client sends, as it stands on the wire, and what it gets back."""

import asyncio
import json

import httpx
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import PluginError
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.building import build_index
from agentrl.retriever.corpus import Passage
from agentrl.retriever.dialects.base import Limits, Refused, dialects, read
from agentrl.retriever.opening import open_index
from agentrl.retriever.server import App
from tests.retriever.helpers import PASSAGES

APP = App(Bm25Index.from_passages(PASSAGES))
CONTENTS = {p.id: p.contents for p in PASSAGES}


def post(content, app=APP, path="/retrieve", method="POST", headers=None):
    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(send())


def bare(identifier):
    return {"id": identifier, "contents": CONTENTS[identifier]}


def with_score(found, *ids):
    assert [hit["document"] for hit in found] == [bare(i) for i in ids]
    assert all(isinstance(hit["score"], float) and hit.keys() == {"document", "score"} for hit in found)


@pytest.mark.parametrize(
    ("client", "body", "shape"),
    [
        ("Search-R1, verl, Agent Lightning", {"queries": ["Brightkiln"], "topk": 2, "return_scores": True}, "scores"),
        ("slime", {"queries": ["Brightkiln"], "topk": 2, "return_scores": False}, "bare"),
        ("skyrl-gym", {"query": "Brightkiln", "topk": 2, "return_scores": True}, "scores"),
        ("skyrl-gym without scores", {"query": "Brightkiln", "topk": 2, "return_scores": False}, "bare"),
        ("ZeroSearch", {"queries": ["Brightkiln"], "top_k": 2}, "bare"),
        ("R1-Searcher", {"queries": ["Brightkiln"], "k": 2}, "bare"),
        ("ASearcher", {"queries": ["Brightkiln"], "topk": 2, "return_scores": False}, "bare"),
        ("rLLM", {"query": "Brightkiln", "top_k": 2}, "rllm"),
        ("rLLM, older", {"query": "Brightkiln", "k": 2}, "rllm"),
    ],
)
def test_json_clients(client, body, shape):
    response = post(json.dumps(body).encode())
    assert response.status_code == 200 and response.headers["content-type"] == "application/json", client
    answer = response.json()
    if shape == "rllm":
        assert answer.keys() == {"query", "method", "results", "num_results"} and answer["query"] == "Brightkiln"
        assert [r["id"] for r in answer["results"]] == ["c", "a"] and answer["num_results"] == 2
        assert all(
            r.keys() == {"id", "content", "score"} and r["content"] == CONTENTS[r["id"]] for r in answer["results"]
        )
        return
    (found,) = answer["result"]
    if shape == "scores":
        with_score(found, "c", "a")
    else:
        assert found == [bare("c"), bare("a")]


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream"])
def test_gem_posts_msgpack_without_a_content_type(content_type):
    headers = {"content-type": content_type} if content_type else None
    response = post(msgpack.packb({"query": "Brightkiln", "topk": 2, "return_scores": True}), headers=headers)
    assert response.status_code == 200 and response.headers["content-type"] == "application/msgpack"
    with_score(msgpack.unpackb(response.content)["result"], "c", "a")
    many = msgpack.unpackb(post(msgpack.packb({"queries": ["Brightkiln", "Edda"], "topk": 1})).content)["result"]
    assert many == [[bare("c")], [bare("d")]]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\x81", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff" + b"\xa1a\x01" * 1000, "not msgpack"),
        (b"\x81\xa5query\xdb\xff\xff\xff\xffx", "not msgpack"),
        (b"\x81" * 100_000, "not msgpack"),
        (b"\x81\xa5query" + b"\x91" * 100_000 + b"\x01", "not msgpack"),
        (b"\x81\xa5query\xa2\xff\xfe", "not UTF-8"),
        (b"\x81\xa5query\xc7\x01\x05x", "msgpack extension (type 5)"),
        (b"\x82\xa5query\xa1a\xa5query\xa1b", "appears twice"),
        (b"\x81\x01\x02", "not msgpack"),
        (b"\x81\x81\x01\x02\x03", "not msgpack"),
        (msgpack.packb({"query": "a"}) + b"\x01", "not msgpack"),
        (msgpack.packb({"query": b"bytes"}), "query 0 must be a string"),
        (msgpack.packb({"query": "a", "topk": float("nan")}), '"topk" must be an integer'),
        (msgpack.packb({"query": "a", "topk": 2**40}), "between 1 and 100"),
        (msgpack.packb({"query": "a", "return_scores": 1}), "true or false"),
        (msgpack.packb({"query": "a", b"topk": 1}), "unknown key"),
    ],
)
def test_msgpack_that_is_none(body, reason):
    response = post(body)
    assert response.status_code == 400 and reason in response.json()["error"]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40), st.sampled_from([0x80, 0x81, 0x82, 0x8F, 0xDE, 0xDF]))
def test_any_msgpack_like_bytes_get_an_answer(tail, first):
    response = post(bytes([first]) + tail)
    assert response.status_code in (200, 400)


def test_a_dialect_of_ones_own_is_asked_first():
    class Shout:
        content_type = "text/plain"

        def takes(self, wanted):
            return wanted.queries == ["shout"]

        def render(self, wanted, found):
            return b"HEY"

    import tests.retriever.test_dialects as here

    here.Shout = Shout
    app = App(Bm25Index.from_passages(PASSAGES), dialect_names=["tests.retriever.test_dialects:Shout"])
    assert post(b'{"query": "shout"}', app).content == b"HEY"
    assert post(b'{"query": "Edda", "topk": 1}', app).json() == {"result": [[bare("d")]]}
    with pytest.raises(PluginError, match="there is no dialect 'gme'; did you mean 'gem'"):
        dialects(["gme"])


def test_a_passage_with_contents_of_its_own_survives_the_wire():
    app = App(Bm25Index.from_passages([Passage("x", "Title", "kiln", "Title / kiln")]))
    (document,) = post(b'{"query": "kiln"}', app).json()["result"][0]
    assert document == {"id": "x", "contents": "Title / kiln", "title": "Title", "text": "kiln"}


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5),
    st.none() | st.integers(1, 100),
)
def test_json_and_msgpack_are_read_alike(queries, topk):
    fields = {"queries": queries, "topk": topk, "return_scores": True}
    by_json, by_msgpack = read(json.dumps(fields).encode(), Limits()), read(msgpack.packb(fields), Limits())
    assert (by_json.queries, by_json.topk, by_json.return_scores) == (queries, topk or 3, True)
    assert (by_msgpack.queries, by_msgpack.topk, by_msgpack.return_scores) == (queries, topk or 3, True)
    with pytest.raises(Refused):
        read(json.dumps(fields | {"k": 1}).encode(), Limits())


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    out = tmp_path_factory.mktemp("documents") / "index"
    extra = [Passage("a/b c?", "", "slash"), Passage("ü%2f", "", "percent"), Passage("../../etc/passwd", "", "dots")]
    build_index([*PASSAGES, *extra], out)
    return App(open_index(out))


def test_documents_are_opened_by_id(opened):
    page = {
        "id": "c",
        "contents": CONTENTS["c"],
        "title": "Brightkiln",
        "text": PASSAGES[2].text,
        "page": CONTENTS["c"],
    }
    assert post(b"", opened, "/documents/c", "GET").json() == page
    assert post(json.dumps({"urls": ["c", "absent"]}).encode(), opened, "/access").json() == {"result": [page, None]}
    assert post(b'{"ids": []}', opened, "/access").json() == {"result": []}
    for path, text in [
        ("/documents/a%2Fb%20c%3F", "slash"),
        ("/documents/a/b%20c%3F", "slash"),
        ("/documents/%C3%BC%252f", "percent"),
        ("/documents/..%2F..%2Fetc%2Fpasswd", "dots"),
    ]:
        assert post(b"", opened, path, "GET").json()["text"] == text
    head = post(b"", opened, "/documents/c", "HEAD")
    assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 50


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("GET", "/documents/..%2Fmeta.json", b"", 404, "there is no document '../meta.json'"),
        ("GET", "/documents/", b"", 404, "there is no document ''"),
        ("GET", "/documents/%FF", b"", 400, "the id is not UTF-8"),
        ("GET", "/documents/" + "x" * 2000, b"", 400, "an id has 2000 characters"),
        ("POST", "/documents/c", b"", 405, "use POST /retrieve"),
        ("POST", "/access", b"{}", 400, 'give "urls", a list of ids'),
        (
            "POST",
            "/access",
            b'{"url": ["c"]}',
            400,
            "unknown key 'url': give \"urls\", a list of ids; did you mean 'urls'?",
        ),
        ("POST", "/access", b'{"urls": ["c"], "ids": ["c"]}', 400, 'give "urls"'),
        ("POST", "/access", b'{"urls": "c"}', 400, "must be a list of strings, not a string"),
        ("POST", "/access", b'{"urls": [1]}', 400, "must be a list of strings"),
        ("POST", "/access", json.dumps({"urls": ["c"] * 101}).encode(), 400, "at most 100"),
        ("POST", "/access", b"\x80", 415, "/access takes JSON"),
        ("GET", "/access", b"", 405, "use POST"),
        ("GET", "/helth", b"", 404, "did you mean '/health"),
    ],
)
def test_documents_that_cannot_be_opened(opened, method, path, body, status, reason):
    response = post(body, opened, path, method)
    assert response.status_code == status and reason in response.json()["error"]


def test_a_searcher_without_documents_says_so():
    response = post(b"", APP, "/documents/c", "GET")
    assert response.status_code == 404 and "cannot open documents by id" in response.json()["error"]
