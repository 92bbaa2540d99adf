"""Tests with the real Ray, DeepSpeed, vLLM and OpenRLHF. Skipped, with the reason, where they are not installed."""

import os
import shutil
import tempfile
from importlib.util import find_spec
from uuid import uuid4

import pytest

from tests.distributed.processes import MARK, wait_until_gone

MISSING = [name for name in ("ray", "deepspeed", "vllm", "openrlhf") if find_spec(name) is None]


def pytest_collection_modifyitems(items):
    reason = f"{', '.join(MISSING)} not installed: scripts/setup_openrlhf_cpu.sh, then make test-distributed"
    for item in items:
        if "tests/distributed/" in item.nodeid:
            item.add_marker(pytest.mark.distributed)
            if MISSING:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def own_environment():
    """Nobody else's Ray is joined, and every process that is started here can be told from others."""
    os.environ[MARK] = uuid4().hex
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def ray_folder():
    """For Ray's sockets and logs; short, because a socket's path has at most 107 characters."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_here(own_environment, ray_folder):
    """One Ray for all tests of this process; every test starts and ends its own workers."""
    import ray

    from agentrl.engines.openrlhf import cpu

    os.environ.update(cpu.ENVIRONMENT)
    ray.init(num_cpus=24, num_gpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1",
             _temp_dir=ray_folder, runtime_env={"env_vars": cpu.ENVIRONMENT})  # fmt: skip
    yield ray
    ray.shutdown()
    wait_until_gone(os.environ[MARK])
