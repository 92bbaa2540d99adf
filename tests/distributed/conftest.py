"""Tests with the real Ray, DeepSpeed, vLLM and OpenRLHF. Skipped, with the reason, where they are not installed."""

from importlib.util import find_spec

import pytest

MISSING = [name for name in ("ray", "deepspeed", "vllm", "openrlhf") if find_spec(name) is None]


def pytest_collection_modifyitems(items):
    reason = f"{', '.join(MISSING)} not installed: scripts/setup_openrlhf_cpu.sh, then make test-distributed"
    for item in items:
        if "tests/distributed/" in item.nodeid:
            item.add_marker(pytest.mark.distributed)
            if MISSING:
                item.add_marker(pytest.mark.skip(reason=reason))
