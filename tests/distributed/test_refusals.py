"""What a real Ray, or what is none, makes the engine say before any worker starts."""

import socket
import time

import pytest

from agentrl.engines.openrlhf.watchdog import Watchdog
from agentrl.errors import ConfigError, RunError
from agentrl.train.build import build_job
from tests.small import small_config


def test_more_gpus_than_the_cluster_has(ray_here, warm_model, tmp_path):
    many = {"gpus_per_node": 4, "engines": 5}
    config = small_config(tmp_path, warm_model, engine="openrlhf", train={"mini_batches": 1}, openrlhf=many)
    with pytest.raises(ConfigError, match=r"9 GPUs .*the Ray cluster has 8: lower openrlhf\.gpus_per_node"):
        build_job(config, tmp_path, say=lambda line: None)
    assert ray_here.available_resources()["GPU"] == 8


def test_an_address_where_something_else_listens(warm_model, tmp_path):
    from agentrl.engines.openrlhf.launch import _answers_as_ray

    with socket.create_server(("127.0.0.1", 0)) as other:
        start = time.monotonic()
        with pytest.raises(RunError, match=r"does not answer as a Ray cluster.*openrlhf\.ray_address or RAY_ADDRESS"):
            _answers_as_ray(f"127.0.0.1:{other.getsockname()[1]}")
        assert time.monotonic() - start < 30


def test_a_ray_answers_as_one(ray_here):
    from agentrl.engines.openrlhf.launch import _answers_as_ray

    _answers_as_ray(ray_here.get_runtime_context().gcs_address)


def test_a_full_object_store_is_an_error_with_the_key(ray_here):
    from ray.exceptions import ObjectStoreFullError

    from agentrl.engines.openrlhf.calls import Calls

    class Full:
        class score:
            @staticmethod
            def remote(batch):
                raise ObjectStoreFullError("no space left")

    with pytest.raises(RunError, match=r"no room for the arguments of score .*openrlhf\.object_store_gb"):
        Calls(Watchdog(print, 60.0)).start([Full()], "score", [(None,)])


def test_a_ray_that_does_not_come_up_is_an_error_for_people(warm_model, tmp_path, monkeypatch):
    import ray

    from agentrl.engines.openrlhf.launch import start_ray

    def late(**options):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    config = small_config(tmp_path, warm_model, engine="openrlhf")
    with pytest.raises(RunError, match=r"a local Ray cannot be started: .*timed out during startup"):
        start_ray(config, cpu=True)


def test_a_worker_that_ray_killed_for_want_of_memory_is_an_error_for_people(monkeypatch):
    import ray
    from ray.exceptions import OutOfMemoryError

    from agentrl.engines.openrlhf.calls import _look

    def killed(references, timeout):
        raise OutOfMemoryError("1 worker(s) were killed due to the node running low on memory. " + 3000 * "x")

    monkeypatch.setattr(ray, "get", killed)
    with pytest.raises(RunError, match=r"a worker died .*low on memory.*Resume the run") as raised:
        _look(["a result"], "policy workers to score")
    assert len(str(raised.value)) < 600
