"""Which server is asked: balance, circuit breaker, hedging, shared requests, errors that say where and when."""

import asyncio
import json
import threading
import time

import pytest

from agentrl.retriever.building import build_index
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.corpus import Passage
from agentrl.retriever.endpoints import FAILURES, MOST_OPEN_S, OPEN_S, Endpoints
from agentrl.retriever.errors import RetrieverRejected, RetrieverTimeout, RetrieverUnavailable
from tests.retriever.helpers import PASSAGES, raw_server, respond, server_process


def answer(body: bytes) -> bytes:
    """The passage found for a query has the query as its text."""
    hits = [[{"document": {"id": "1", "contents": q or "-"}, "score": 1}] for q in json.loads(body)["queries"]]
    return json.dumps({"result": hits}).encode()


def texts(found):
    return [[hit.passage.text for hit in hits] for hits in found]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_breaker_opens_waits_longer_each_time_and_closes_after_one_answer():
    clock = Clock()
    endpoints = Endpoints(["a"], clock)
    for _ in range(FAILURES):
        endpoints.failed(endpoints.take())
    assert endpoints.take() is None and endpoints.wait_s() == pytest.approx(OPEN_S)
    clock.now += OPEN_S
    trial = endpoints.take()
    assert trial is not None and endpoints.take() is None  # one request tries it
    endpoints.failed(trial)
    assert endpoints.take() is None and endpoints.wait_s() == pytest.approx(2 * OPEN_S)
    for _ in range(10):
        clock.now = endpoints.all[0].open_until
        endpoints.failed(endpoints.take())
    assert endpoints.wait_s() == pytest.approx(MOST_OPEN_S)
    clock.now += MOST_OPEN_S
    endpoints.dropped(endpoints.take())  # nothing was learnt: the next one tries
    endpoints.answered(endpoints.take(), 0.1)
    assert endpoints.take() and endpoints.take()


def test_a_call_that_only_met_an_open_circuit_says_why_it_is_open():
    """The failures were another call's; this one waited for the circuit, and its own error must name the cause."""
    client = RetrieverClient("http://127.0.0.1:9", timeout_s=0.2, retries=0)
    for _ in range(FAILURES):
        with pytest.raises(RetrieverUnavailable):
            client.search_batch(["q"], 1)
    with pytest.raises(RetrieverTimeout) as caught:
        client.search_batch(["q"], 1)
    assert caught.value.attempt == 1  # it sent nothing
    assert f"last failure: http://127.0.0.1:9 failed {FAILURES} times in a row, last: " in str(caught.value)
    assert "http://127.0.0.1:9/retrieve cannot be reached (ConnectError" in str(caught.value)
    client.close()


def test_a_circuit_that_closed_is_no_reason():
    endpoints = Endpoints(["a", "b"])
    a, b = endpoints.all
    for _ in range(FAILURES):
        endpoints.failed(a, "refused")
    assert endpoints.why_open() == f"a failed {FAILURES} times in a row, last: refused"
    endpoints.answered(a, 0.1)
    endpoints.failed(b, "one is none")
    assert endpoints.why_open() == "" and a.problem == ""


def test_the_idle_fast_and_healthy_one_is_asked():
    endpoints = Endpoints(["a", "b", "c"])
    first = [endpoints.take() for _ in range(3)]
    assert {e.url for e in first} == {"a", "b", "c"}  # each is idle until it is asked
    for endpoint, seconds in zip(sorted(first, key=lambda e: e.url), (0.3, 0.1, 0.2)):
        endpoints.answered(endpoint, seconds)
    assert endpoints.take().url == "b" and endpoints.take().url == "c"
    endpoints.failed(endpoints.all[1])
    endpoints.dropped(endpoints.all[2])
    assert endpoints.take().url == "c" and endpoints.take(avoid=[endpoints.all[0]]).url == "c"
    assert endpoints.take(avoid=endpoints.all) is not None


def test_the_p95():
    endpoints = Endpoints(["a"])
    for n in range(1, 101):
        assert (endpoints.p95_s() is None) == (n <= 20)
        endpoints.answered(endpoints.take(), n / 100)
    assert endpoints.p95_s() == pytest.approx(0.95, abs=0.011)


def test_a_dead_server_among_several_costs_no_call(tmp_path):
    build_index(PASSAGES, tmp_path / "index")
    with server_process(tmp_path / "index") as (one, first), server_process(tmp_path / "index") as (two, _):
        client = RetrieverClient([one, f"{two}/retrieve"], timeout_s=20)
        expected = client.search_batch(["glass"], 1)
        client._endpoints.all[1].latency_s = 9.0  # the first is preferred
        first.kill()
        first.wait()
        assert [client.search_batch([f"glass {n}"], 1)[0][0].passage for n in range(30)] == [
            expected[0][0].passage
        ] * 30
        assert client._endpoints.all[0].failures >= 1 and client._endpoints.all[1].failures == 0
        assert client.url == f"{one},{two}"
        assert RetrieverClient(f"{one} , {two}")._endpoints.all[1].url == two


def test_an_open_circuit_sends_nothing_until_it_is_tried_again():
    down = threading.Event()
    down.set()

    def serve(connection, number):
        respond(connection, b"no", "500 No") if down.is_set() else respond(connection, answer(b'{"queries": ["x"]}'))

    with raw_server(serve) as (url, seen):
        client = RetrieverClient(url, timeout_s=0.2, retries=20)
        with pytest.raises(RetrieverTimeout):
            client.search_batch(["x"], 1)
        with pytest.raises(RetrieverTimeout, match=r"did not answer 1 queries within 0\.2 s"):
            client.search_batch(["x"], 1)
        assert len(seen) <= FAILURES + 1
        down.clear()
        time.sleep(OPEN_S * 2)
        assert texts(client.search_batch(["x"], 1)) == [["x"]]


def test_equal_queries_under_way_share_one_request():
    bodies = []

    def serve(connection, number, body):
        bodies.append(json.loads(body)["queries"])
        time.sleep(0.2)
        respond(connection, answer(body))

    with bodies_server(serve) as url:
        client = RetrieverClient(url)

        async def many():
            first = asyncio.create_task(client.asearch_batch(["a", "b", "a"], 1))
            await asyncio.sleep(0.05)
            others = [client.asearch_batch(q, 1) for q in (["a"], ["b", "c"], ["b", "a"])]
            return await asyncio.gather(first, *others, client.asearch_batch(["a"], 2))

        found = asyncio.run(many())
    assert [texts(f) for f in found] == [[["a"], ["b"], ["a"]], [["a"]], [["b"], ["c"]], [["b"], ["a"]], [["a"]]]
    assert sorted(bodies) == [["a"], ["a", "b"], ["c"]]  # the second "a" asked for two passages
    assert found[0][0] is not found[0][2]


def test_a_shared_request_outlives_who_began_it_and_ends_with_the_last():
    seen, ended = [], threading.Event()

    def serve(connection, number, body):
        seen.append(json.loads(body)["queries"])
        if seen[-1] == ["slow"]:
            connection.settimeout(5)
            if connection.recv(1) == b"":  # the client hung up
                ended.set()
            return
        time.sleep(0.2)
        respond(connection, answer(body))

    with bodies_server(serve) as url:
        client = RetrieverClient(url)

        async def run():
            first = asyncio.create_task(client.asearch_batch(["a"], 1))
            await asyncio.sleep(0.05)
            second = asyncio.create_task(client.asearch_batch(["a"], 1))
            await asyncio.sleep(0.01)
            first.cancel()
            assert texts(await second) == [["a"]]
            slow = asyncio.create_task(client.asearch_batch(["slow"], 1))
            while ["slow"] not in seen:
                await asyncio.sleep(0.01)
            slow.cancel()
            await asyncio.sleep(0.1)
            assert not client._flights[asyncio.get_running_loop()]

        asyncio.run(run())
        assert ended.wait(5)
    assert seen == [["a"], ["slow"]]


def test_a_slow_attempt_is_hedged_after_the_p95():
    slow = threading.Event()

    def serve(connection, number, body):
        if b"hang" in body and not slow.is_set():
            slow.set()
            time.sleep(3)
        respond(connection, answer(body))

    with bodies_server(serve) as url:
        plain, hedged = RetrieverClient(url), RetrieverClient(url, hedge=True, timeout_s=30)
        for n in range(25):
            hedged.search_batch([f"q{n}"], 1)
        begun = time.monotonic()
        assert texts(hedged.search_batch(["hang"], 1)) == [["hang"]]
        assert time.monotonic() - begun < 2.5 and slow.is_set()
        assert hedged._endpoints.all[0].under_way == 0 and not plain._hedge


def test_errors_say_url_attempt_and_time():
    with raw_server(lambda c, _: respond(c, b"busy", "503 Busy")) as (url, seen):
        with pytest.raises(
            RetrieverUnavailable, match=r"answered 503: busy.*\(attempt 3 of 3, \d\.\d\d s, request \w{16}\)"
        ) as caught:
            RetrieverClient(url, retries=2).search_batch(["x"], 1)
        assert caught.value.url == url and caught.value.attempt == 3 and caught.value.elapsed_s > 0
        assert len(seen) == 3
    with raw_server(lambda c, _: respond(c, b"bad", "400 No")) as (url, _):
        with pytest.raises(RetrieverRejected) as refused:
            RetrieverClient(url).search_batch(["x"], 1)
        assert (refused.value.status, refused.value.url, refused.value.attempt) == (400, url, 1)


def test_retry_after_is_kept_and_a_429_with_it_is_tried_again():
    def overloaded_once(connection, number):
        if number == 0:
            connection.sendall(b"HTTP/1.1 429 Slow\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        else:
            respond(connection, answer(b'{"queries": ["x"]}'))

    with raw_server(overloaded_once) as (url, seen):
        begun = time.monotonic()
        assert texts(RetrieverClient(url).search_batch(["x"], 1)) == [["x"]]
        assert time.monotonic() - begun >= 1 and len(seen) == 2


def test_the_deadline_and_the_name_travel_with_the_request():
    heads = []

    def serve(connection, number, body, head):
        heads.append(head.decode().lower())
        respond(connection, answer(body))

    with bodies_server(serve, heads=True) as url:
        RetrieverClient(url, timeout_s=7).search_batch(["x"], 1)
    lines = dict(line.split(": ", 1) for line in heads[0].split("\r\n")[1:] if ": " in line)
    assert 6_000 < int(lines["x-timeout-ms"]) <= 7_000
    assert lines["x-request-id"].endswith("-1")


def test_documents_are_opened(tmp_path):
    strange = Passage("a/ü?%2f", "T", "text", "T: text")
    build_index([*PASSAGES, strange], tmp_path / "index")
    with server_process(tmp_path / "index") as (url, _), RetrieverClient(url) as client:
        assert client.document("c") == PASSAGES[2] and client.document("a/ü?%2f") == strange
        assert client.document("absent") is None
        assert asyncio.run(client.adocument("c")) == PASSAGES[2]


def bodies_server(serve, heads=False):
    """A `raw_server` whose `serve(connection, number, body[, head])` gets what was sent; yields its url."""
    from contextlib import contextmanager

    from tests.retriever import helpers

    @contextmanager
    def made():
        def read_and_serve(connection, number):
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536) or b"\r\n\r\n"
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(dict(x.split(b": ", 1) for x in head.lower().split(b"\r\n")[1:])[b"content-length"])
            while len(body) < length:
                body += connection.recv(65536)
            serve(connection, number, body, *([head] if heads else []))

        original = helpers.read_request
        helpers.read_request = lambda connection: b""
        try:
            with raw_server(read_and_serve) as (url, _):
                yield url
        finally:
            helpers.read_request = original

    return made()
