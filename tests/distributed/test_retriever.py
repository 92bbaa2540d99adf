"""Two shards on a real Ray head with Ray Serve: the same answers as one index, over HTTP, through our client.

Ray Serve 2.55 reads FieldDescriptor.label, which protobuf 7 no longer has: the requirements ask for an older one.
"""

import json
import socket

import httpx
import pytest

from agentrl.retriever.building import Plan, build_index
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.corpus import CorpusReader
from agentrl.retriever.opening import open_index
from tests.retriever.helpers import HASHING, PASSAGES

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")


@pytest.fixture
def head():
    """Ray, which other tests of this process may have started already."""
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    from ray import serve

    serve.shutdown()
    if started:
        ray.shutdown()


@pytest.mark.distributed
def test_shards_on_ray_serve(tmp_path, head):
    from agentrl.retriever.ray_serve import Cluster, serve

    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps({"id": p.id, "contents": p.contents}) + "\n" for p in PASSAGES))
    plan = Plan(kind="flat", encoder=HASHING)
    build_index(PASSAGES, tmp_path / "whole", plan)
    shards = [tmp_path / f"shard{i}" for i in (1, 2)]
    for i, shard in enumerate(shards, start=1):
        build_index(CorpusReader(file, shard=(i, 2)), shard, plan)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve(shards, Cluster(port=port, most_replicas=2), token="s3cret", say=lambda line: None, block=False)
    url = f"http://127.0.0.1:{port}"
    queries = ["glass kiln", "who was born in Torvik", "Edda"]
    with RetrieverClient(url, timeout_s=60, token="s3cret") as client:
        client.wait_until_ready(60, say=lambda line: None)
        whole = open_index(tmp_path / "whole").search_batch(queries, 3)
        for ours, expected in zip(client.search_batch(queries, 3), whole, strict=True):
            assert [hit.passage for hit in ours] == [hit.passage for hit in expected]
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert client.document("b") == PASSAGES[1] and client.document("nix") is None
    assert httpx.post(f"{url}/retrieve", json={"query": "x"}).status_code == 401
    headers = {"authorization": "Bearer s3cret"}
    bad = httpx.post(f"{url}/retrieve", json={"query": "x", "topk": 0}, headers=headers)
    assert bad.status_code == 400 and "between 1 and 100" in bad.json()["error"]
