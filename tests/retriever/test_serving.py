"""A real server process: drain, replicas that die, slow senders, clients that hang up, the access log, warm-up."""

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from agentrl.retriever.building import Plan, build_index
from agentrl.retriever.cli import main
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.errors import ServeError
from agentrl.retriever.server import App, Manners
from agentrl.retriever.serving import Service, serve
from tests.retriever.helpers import HASHING, PASSAGES, Fake, server_process


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "index"
    build_index(PASSAGES, path)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "dense"
    build_index(PASSAGES, path, Plan(kind="flat", encoder=HASHING))
    return path


def metric(client, name):
    text = client.get("/metrics").text
    return float(re.search(rf"^agentrl_retriever_{name} (\S+)$", text, re.M).group(1))


def test_a_dense_index_answers_as_in_process(dense):
    from agentrl.retriever.opening import open_index

    queries = ["Brightkiln glass", "who was born in Torvik", ""]
    with server_process(dense) as (url, _), RetrieverClient(url) as client, httpx.Client(base_url=url) as http:
        assert client.search_batch(queries, 2) == open_index(dense).search_batch(queries, 2)
        health = http.get("/health").json()
        assert health["kind"] == "flat" and health["encoder"]["name"] == "hashing"
        assert metric(http, "cache_misses_total") == 3
        client.search_batch(queries, 2)
        assert metric(http, "cache_hits_total") == 3 and metric(http, "batches_total") >= 1


@pytest.mark.slow
def test_sigterm_answers_what_is_under_way_and_takes_nothing_new(tmp_path):
    spec = HASHING.__class__("waiting", runtime="tests.retriever.test_serving:Waiting")
    build_index(PASSAGES, tmp_path / "index", Plan(kind="flat", encoder=spec))
    with server_process(tmp_path / "index") as (url, process), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(httpx.post, f"{url}/retrieve", json={"query": f"wait {n}"}, timeout=20) for n in range(3)]
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        assert [future.result().status_code for future in asked] == [200] * 3
        process.wait(10)


class Waiting(HASHING.__class__):
    """An encoder whose queries with "wait" take 1.5 s."""

    needs_folder = False

    def __new__(cls, spec, folder, threads):
        from tests.retriever.helpers import Hashing

        class Slow(Hashing):
            def encode(self, texts, prefix=""):
                if any("wait" in text for text in texts):
                    time.sleep(1.5)
                return super().encode(texts, prefix)

        return Slow(spec, folder, threads)


def test_replicas_share_the_port_and_one_that_is_killed_is_replaced(index):
    with server_process(index, "--replicas", "2") as (url, process):
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        client = RetrieverClient(url, timeout_s=20)
        expected = client.search_batch(["glass"], 2)
        wrong, stop = [], threading.Event()

        def load():
            while not stop.is_set():
                if client.search_batch(["glass"], 2) != expected:
                    wrong.append(1)

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(load) for _ in range(4)]
            time.sleep(0.3)
            children[0].send_signal(signal.SIGKILL)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                alive = [c for c in psutil.Process(process.pid).children() if c.status() != psutil.STATUS_ZOMBIE]
                if len(alive) == 2 and children[0].pid not in {c.pid for c in alive}:
                    break
                time.sleep(0.05)
            else:
                pytest.fail("the replica was not started anew")
            time.sleep(0.5)
            stop.set()
            for future in futures:
                future.result()  # a typed error here would be a call that was lost
        assert not wrong
        with httpx.Client(base_url=url) as http:
            assert metric(http, "replicas") == 2 and metric(http, "queries_total") > 10
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        assert not [c for c in [*children, *alive] if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]


def test_replicas_end_with_a_parent_that_was_killed_and_free_the_port(index):
    with server_process(index, "--replicas", "2") as (_, process):
        replicas = psutil.Process(process.pid).children()
        assert len(replicas) == 2
        process.kill()
        assert psutil.wait_procs(replicas, timeout=30)[1] == []


def test_replicas_that_cannot_start_say_why(tmp_path, index, capsys):
    assert main(["serve", str(tmp_path / "none"), "--replicas", "2", "--port", "0"]) == 2
    assert "no such index" in capsys.readouterr().err
    with pytest.raises(ServeError, match="0 replicas: choose between 1 and 256"):
        serve(index, Service(replicas=0, port=0))


def test_a_port_that_is_taken_is_said_before_the_index_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServeError, match="choose another with --port"):
        serve(tmp_path / "none", Service(port=taken.getsockname()[1]))


def test_the_access_log_has_no_text_of_queries_unless_asked(index, tmp_path):
    for arguments, shown in [((), False), (("--log-queries",), True)]:
        log = tmp_path / f"log{shown}"
        with server_process(index, "--access-log", str(log), *arguments) as (url, _):
            headers = {"x-request-id": "mine\u00e9".encode("latin-1")}
            response = httpx.post(f"{url}/retrieve", json={"query": "secret glass"}, headers=headers)
            assert response.headers["x-request-id"] == "mine\u00e9"
            httpx.get(f"{url}/documents/secret-id")
        lines = log.read_text().splitlines()
        assert len(lines) == 2 and "POST /retrieve 200" in lines[0] and "queries=1 topk=3" in lines[0]
        assert ("secret glass" in lines[0]) is shown and "secret-id" not in lines[1] and "404" in lines[1]


def call(app, body=b'{"query": "x"}', headers=(), receive=None):
    """One request to an ASGI application: status, headers and JSON."""
    sent = []

    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def given():
        return messages.pop() if messages else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/retrieve", "headers": list(headers)}

    async def run():
        await app(scope, receive or given, send)

    asyncio.run(run())
    return (sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])) if sent else None


class Sleeping(Fake):
    def search_batch(self, queries, topk):
        time.sleep(0.5)
        return super().search_batch(queries, topk)


@pytest.mark.parametrize(("manners", "status"), [(Manners(), 503), (Manners(overload_status=429), 429)])
def test_a_deadline_that_passes_is_the_overload_status_with_retry_after(manners, status):
    app = App(Sleeping(quick=False), manners=manners)
    found, headers, answer = call(app, headers=[(b"x-timeout-ms", b"50")])
    assert found == status and int(headers[b"retry-after"]) >= 1 and "try again in" in answer["error"]
    assert app.metrics.total("overload_total") == 1
    assert call(App(Sleeping(quick=False), manners=Manners(deadline_s=0.05)))[0] == 503
    for bad in (b"0", b"-1", b"1.5", b"abc", b"9" * 12):
        found, _, answer = call(app, headers=[(b"x-timeout-ms", bad)])
        assert found == 400 and "x-timeout-ms" in answer["error"]


def test_a_body_that_does_not_arrive_is_408_and_a_client_that_hangs_up_gets_nothing():
    async def never():
        await asyncio.sleep(60)

    begun = time.monotonic()
    status, _, answer = call(App(Fake(), manners=Manners(read_s=0.2)), receive=never)
    assert status == 408 and "did not arrive within 0.2 s" in answer["error"] and time.monotonic() - begun < 5

    messages = iter([{"type": "http.request", "body": b'{"query": "x"}', "more_body": False}])

    async def then_gone():
        return next(messages, {"type": "http.disconnect"})

    fake = Sleeping(quick=False)
    app = App(fake)
    assert call(app, receive=then_gone) is None
    assert app.metrics.total("disconnected_total") == 1 and app.scheduler.waiting == 0


def test_a_head_that_never_ends_is_hung_up_on(index, monkeypatch):
    monkeypatch.setattr("agentrl.retriever.serving._HEADERS_S", 0.3)
    where, ended = {}, threading.Event()
    from agentrl.retriever import serving
    from agentrl.retriever.metrics import Metrics
    from agentrl.retriever.opening import open_index

    listener = serving._bound("127.0.0.1", 0)

    def run():
        with listener:
            serving._run(open_index(index), Service(), listener, None, Metrics(), lambda: where.update(up=True))
        ended.set()

    monkeypatch.setattr("uvicorn.Server.capture_signals", __import__("contextlib").nullcontext)
    servers = []
    original = serving._Server.__init__
    monkeypatch.setattr(serving._Server, "__init__", lambda s, *a: (servers.append(s), original(s, *a))[1])
    threading.Thread(target=run, daemon=True).start()
    deadline = time.monotonic() + 20
    while not where and time.monotonic() < deadline:
        time.sleep(0.01)
    address = listener.getsockname()
    for start in (b"", b"POST /retrieve HTTP/1.1\r\nhost: x\r\n"):
        with socket.create_connection(address) as slow:
            slow.settimeout(10)
            slow.sendall(start)
            assert slow.recv(100) == b""
    assert httpx.get(f"http://127.0.0.1:{address[1]}/health").status_code == 200
    servers[0].should_exit = True
    assert ended.wait(20)


@pytest.mark.slow
def test_start_up_does_not_read_the_passages(tmp_path):
    """Memory of a server does not grow with the corpus: passages are mapped, not loaded."""
    from agentrl.retriever.corpus import Passage

    sizes = {}
    for count in (1_000, 40_000):
        out = tmp_path / str(count)
        build_index(
            (Passage(str(i), f"t{i}", "x" * 4_000) for i in range(count)), out, Plan(kind="flat", encoder=HASHING)
        )
        with server_process(out) as (_, process):
            sizes[count] = psutil.Process(process.pid).memory_info().rss
        sizes[f"{count} on disk"] = sum(p.stat().st_size for p in Path(out).iterdir())
    grown, added = sizes[40_000] - sizes[1_000], sizes["40000 on disk"] - sizes["1000 on disk"]
    assert added > 100 << 20 and grown < added / 3, sizes


def test_the_environment_of_the_server_is_all_it_needs(index):
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "."), "HOME": "/nonexistent"}
    with server_process(index, env=env) as (url, _):
        assert httpx.get(f"{url}/healthz").json()["ready"] is True
