import asyncio
import json
import multiprocessing
import os
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentrl.retriever.base import MAX_QUERY_CHARS
from agentrl.retriever.building import build_index
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.errors import (
    BadQuery,
    RetrieverBadResponse,
    RetrieverError,
    RetrieverRejected,
    RetrieverTimeout,
    RetrieverUnavailable,
)
from agentrl.retriever.opening import open_index
from tests.retriever.helpers import PASSAGES, raw_server, read_request, respond, server_process

GOOD = b'{"result": [[{"document": {"id": 5, "contents": "\\"T\\"\\ntext"}, "score": 1}]]}'


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("client") / "index"
    build_index(PASSAGES, path)
    return path


@pytest.fixture(scope="module")
def url(index):
    with server_process(index) as (url, _):
        yield url


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


HOSTILE = ["glass", "", "\x00", "\ud800 kilns", "😀" * 5000, "x" * 1_000_000, '{"queries": 1}', "Torvik"]


def test_the_same_answers_as_in_process(url, index):
    expected = open_index(index).search_batch(HOSTILE, 3)
    with RetrieverClient(url + "/retrieve") as client:
        assert client.search_batch(HOSTILE, 3) == expected
        assert asyncio.run(client.asearch_batch(HOSTILE, 3)) == expected
        assert client.search_batch([], 3) == []
    assert expected[0] and expected[3] and expected[-1]
    assert client.search_batch(["glass"], 3) == expected[:1]  # usable after close()


def test_large_batches_are_split_within_the_server_caps(url, index):
    queries = [f"{'😀' * 3000} {word} {n}" for n in range(600) for word in ("glass", "torvik")]
    expected = open_index(index).search_batch(queries, 2)
    with RetrieverClient(url, timeout_s=60) as client:
        bodies = list(client._requests(queries, 2))
        assert len(bodies) > 3 and all(len(body) <= 8 << 20 for _, body in bodies)
        assert [q for _, body in bodies for q in json.loads(body)["queries"]] == [q[:MAX_QUERY_CHARS] for q in queries]
        assert client.search_batch(queries, 2) == expected
    by_count = RetrieverClient(url, max_queries=2)
    assert [count for count, _ in by_count._requests(["a"] * 5, 1)] == [2, 2, 1]


def test_one_client_over_several_event_loops_threads_and_at_once(url):
    client = RetrieverClient(url)

    async def many():
        return await asyncio.gather(*(client.asearch_batch([query], 1) for query in ["glass", "torvik"] * 20))

    first = asyncio.run(many())
    assert asyncio.run(many()) == first and len(client._pools) == 1
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: client.search_batch(["glass", "torvik"], 1), range(20)):
            assert found == [first[0][0], first[1][0]]

    async def sync_inside_a_loop():
        return client.search_batch(["glass"], 1)

    assert asyncio.run(sync_inside_a_loop()) == first[0]

    async def closing():
        await client.asearch_batch(["glass"], 1)
        await client.aclose()
        return await client.asearch_batch(["glass"], 1)

    assert asyncio.run(closing()) == first[0]


def test_survives_a_fork(url):
    client = RetrieverClient(url)
    expected = client.search_batch(["glass"], 1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(client.search_batch(["glass"], 1) == expected))
    child.start()
    assert queue.get(timeout=20) is True
    child.join(10)
    assert client.search_batch(["glass"], 1) == expected


def test_threads_of_dropped_clients_end(url):
    client = RetrieverClient(url)
    client.search_batch(["glass"], 1)
    thread = client._thread._thread
    del client
    thread.join(5)
    assert not thread.is_alive()


def test_a_server_that_is_down():
    client = RetrieverClient(f"http://127.0.0.1:{free_port()}", retries=2)
    with pytest.raises(RetrieverUnavailable, match=r"cannot be reached.*agentrl retriever serve"):
        client.search_batch(["x"], 1)


def test_a_server_killed_between_calls(index):
    with server_process(index) as (url, process):
        client = RetrieverClient(url, retries=1)
        assert client.search_batch(["glass"], 1)
        process.kill()
        process.wait()
        with pytest.raises(RetrieverUnavailable):
            client.search_batch(["glass"], 1)


def test_retries_until_it_works_and_not_more_than_asked():
    def third_time(connection, number):
        respond(connection, GOOD, "200 OK") if number == 2 else respond(connection, b"busy", "503 Busy")

    with raw_server(third_time) as (url, seen):
        (hit,) = RetrieverClient(url, retries=2).search_batch(["x"], 1)[0]
        assert (hit.passage.id, hit.passage.title, hit.passage.text, hit.score) == ("5", "T", "text", 1.0)
        assert len(seen) == 3
    with raw_server(lambda connection, _: respond(connection, b"broken", "500 No")) as (url, seen):
        with pytest.raises(RetrieverUnavailable, match="answered 500: broken"):
            RetrieverClient(url, retries=2).search_batch(["x"], 1)
        assert len(seen) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429])
def test_4xx_is_not_retried(status):
    with raw_server(lambda connection, _: respond(connection, b'{"error": "because"}', f"{status} No")) as (url, seen):
        with pytest.raises(RetrieverRejected, match="because") as caught:
            RetrieverClient(url).search_batch(["x"], 1)
        assert caught.value.status == status and len(seen) == 1


def test_dies_half_way_and_is_retried():
    def half(connection, number):
        if number == 0:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
        else:
            respond(connection, GOOD)

    with raw_server(half) as (url, seen):
        assert RetrieverClient(url).search_batch(["x"], 1)[0][0].passage.title == "T"
        assert len(seen) == 2


@pytest.mark.parametrize("drip", [False, True])
def test_the_deadline_holds_against_silence_and_against_a_drip(drip):
    done = threading.Event()

    def slow(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not done.wait(0.02):
            if drip:
                connection.sendall(b" ")

    with raw_server(slow) as (url, seen):
        begun = time.monotonic()
        with pytest.raises(RetrieverTimeout, match=r"did not answer 1 queries within 0.3 s; raise the timeout"):
            RetrieverClient(url, timeout_s=0.3).search_batch(["x"], 1)
        assert time.monotonic() - begun < 5
        assert len(seen) == 1
        with pytest.raises(RetrieverTimeout):
            RetrieverClient(url, timeout_s=5, attempt_timeout_s=0.05, retries=2).search_batch(["x"], 1)
        assert len(seen) == 4
        done.set()


GARBAGE = [
    b"",
    b"<html>",
    b"\xff",
    b"[]",
    b"{}",
    b'{"result": {}}',
    b'{"result": []}',
    b'{"result": [[], []]}',
    b'{"result": [null]}',
    b'{"result": [[{"id": "1", "contents": "bare"}]]}',
    b'{"result": [[{"document": {"id": "1", "contents": "x"}}]]}',
    b'{"result": [[{"document": {"id": "1", "contents": "x"}, "score": NaN}]]}',
    b'{"result": [[{"document": {"id": "1", "contents": "x"}, "score": true}]]}',
    b'{"result": [[{"document": {"id": "1", "contents": "x"}, "score": ' + b"9" * 400 + b"}]]}",
    b'{"result": [[{"document": {"id": "1"}, "score": 1}]]}',
    b'{"result": [[{"document": {"contents": "x"}, "score": 1}]]}',
    b'{"result": [[{"document": {"id": "1", "contents": ["x"]}, "score": 1}]]}',
    GOOD.replace(b"}]]", b'}, {"document": {"id": 6, "contents": "more"}, "score": 0}]]'),  # two for a topk of 1
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_is_a_typed_error_at_once(body):
    with raw_server(lambda connection, _: respond(connection, body)) as (url, seen):
        with pytest.raises(RetrieverBadResponse, match="is it a Search-R1 retrieval server"):
            RetrieverClient(url).search_batch(["x"], 1)
        assert len(seen) == 1


def test_other_answers_that_are_none():
    def endless(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b" " * 90_000)

    with raw_server(endless) as (url, _), pytest.raises(RetrieverBadResponse, match="more than 1000 bytes"):
        RetrieverClient(url, max_response_bytes=1000).search_batch(["x"], 1)
    encoded = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc"
    with raw_server(lambda c, _: c.sendall(encoded)) as (url, _), pytest.raises(RetrieverBadResponse, match="decoded"):
        RetrieverClient(url).search_batch(["x"], 1)
    with raw_server(lambda c, _: c.sendall(b"SSH-2.0-OpenSSH\r\n")) as (url, _), pytest.raises(RetrieverUnavailable):
        RetrieverClient(url, retries=0).search_batch(["x"], 1)
    elsewhere = b"HTTP/1.1 302 Found\r\nlocation: http://example.org/\r\ncontent-length: 0\r\n\r\n"
    with raw_server(lambda c, _: c.sendall(elsewhere)) as (url, seen):
        with pytest.raises(RetrieverBadResponse, match="answered 302, expected 200; check the url"):
            RetrieverClient(url).search_batch(["x"], 1)
        assert len(seen) == 1  # never followed: the token stays here


def test_cancelling_leaves_the_client_usable():
    def first_hangs(connection, number):
        time.sleep(0.5) if number == 0 else respond(connection, GOOD)

    async def run(client):
        task = asyncio.create_task(client.asearch_batch(["x"], 1))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await client.asearch_batch(["x"], 1)

    with raw_server(first_hangs) as (url, _):
        assert asyncio.run(run(RetrieverClient(url)))[0][0].passage.id == "5"


def test_token_from_the_environment_and_kept_out_of_sight(index, monkeypatch):
    monkeypatch.setenv("AGENTRL_RETRIEVER_TOKEN", "s3cret")
    with server_process(index, env=dict(os.environ)) as (url, _):
        client = RetrieverClient(url)
        assert client.search_batch(["glass"], 1)
        assert "s3cret" not in repr(client)
        with pytest.raises(RetrieverRejected, match="the bearer token is wrong") as caught:
            RetrieverClient(url, token="other").wait_until_ready(5)
        assert caught.value.status == 401 and "other" not in str(caught.value)


def test_pickled_without_the_token(url):
    client = RetrieverClient(url, timeout_s=7.0, token="s3cret")
    client.search_batch(["glass"], 1)
    pickled = pickle.dumps(client)
    assert b"s3cret" not in pickled
    copy = pickle.loads(pickled)
    assert (copy.url, copy.timeout_s) == (url, 7.0)
    assert copy.search_batch(["glass"], 1) == client.search_batch(["glass"], 1)


@pytest.mark.parametrize("token", ["two words", "s\u00e9cret", "s3cret\r\nx: y"])
def test_a_token_no_header_can_hold_is_refused_and_not_repeated(token, monkeypatch):
    monkeypatch.setenv("AGENTRL_RETRIEVER_TOKEN", token)
    with pytest.raises(BadQuery, match="AGENTRL_RETRIEVER_TOKEN has spaces or characters") as caught:
        RetrieverClient("http://127.0.0.1:9")
    assert "cret" not in str(caught.value) and "words" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "", "http://[::1", "http://x:port"])
def test_bad_urls_and_arguments(url):
    with pytest.raises(BadQuery, match="expected http://HOST:PORT"):
        RetrieverClient(url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(BadQuery, match=r"the url of example\.org holds a password") as caught:
        RetrieverClient("http://user:pa55@example.org:80")
    assert "pa55" not in str(caught.value)


def test_bad_arguments_raise_before_anything_is_sent():
    client = RetrieverClient("http://127.0.0.1:9")
    for queries, topk in [(["x"], 0), (["x"], True), ("x", 1), ([5], 1)]:
        with pytest.raises(BadQuery):
            client.search_batch(queries, topk)
    for bad in ({"timeout_s": 0}, {"retries": -1}, {"max_queries": 0}):
        with pytest.raises(BadQuery, match="they must be"):
            RetrieverClient("http://127.0.0.1:9", **bad)
    assert issubclass(BadQuery, RetrieverError)


def test_waiting_is_said_aloud_and_ends_when_the_server_comes_up():
    port, said = free_port(), []
    listener = None

    def start():
        nonlocal listener
        time.sleep(0.4)
        listener = socket.create_server(("127.0.0.1", port))
        connection, _ = listener.accept()
        with connection:
            read_request(connection)
            respond(connection, b'{"status": "ok"}')

    thread = threading.Thread(target=start)
    thread.start()
    RetrieverClient(f"http://127.0.0.1:{port}").wait_until_ready(20, say=said.append)
    thread.join()
    listener.close()
    assert said == [f"waiting for retriever at http://127.0.0.1:{port} (0 s)"]


def test_waiting_gives_up(url):
    said = []
    RetrieverClient(url).wait_until_ready(5, say=said.append)
    assert said == []
    begun = time.monotonic()
    with pytest.raises(RetrieverUnavailable, match=r"waited \d+ s for the retriever .*cannot be reached"):
        RetrieverClient(f"http://127.0.0.1:{free_port()}").wait_until_ready(0.3, say=said.append)
    mute = raw_server(lambda *_: time.sleep(30))
    with mute as (url, _), pytest.raises(RetrieverUnavailable, match="accepts connections and does not answer"):
        RetrieverClient(url).wait_until_ready(0.3, say=said.append)
    assert time.monotonic() - begun < 15
    assert len(said) == 1


def test_a_search_r1_server_without_health_is_ready_when_it_answers_a_query():
    def search_r1(connection, number):
        respond(connection, b"{}", "404 Not Found") if number == 0 else respond(connection, GOOD)

    with raw_server(search_r1) as (url, seen):
        RetrieverClient(url).wait_until_ready(5)
        assert len(seen) == 2
    other = raw_server(lambda connection, _: respond(connection, b"{}", "404 Not Found"))
    with other as (url, _), pytest.raises(RetrieverRejected):
        RetrieverClient(url).wait_until_ready(5)
