"""Load with faults in its short forms; `scripts/bench_retriever.py load` runs the long one."""

import asyncio
import time
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.retriever.faults import Outcome, build_marked, run
from tests.retriever.helpers import server_process


def loaded(tmp_path, seconds, workers) -> tuple[Outcome, Outcome]:
    """A few calm seconds, then the load."""
    with server_process(build_marked(tmp_path / "index"), "--replicas", "2") as (url, process):
        parts = urlsplit(url)
        address = (parts.hostname, parts.port)
        children = psutil.Process(process.pid).children()
        calm = asyncio.run(run(address, -1, seconds=3, workers=workers, failing=0, hanging=0, disconnects=1))
        outcome = asyncio.run(run(address, process.pid, seconds=seconds, workers=workers))
        time.sleep(0.5)
        after = httpx.get(f"{url}/metrics").text
        assert "agentrl_retriever_waiting_queries 0" in after.splitlines()
        alive = [c for c in psutil.Process(process.pid).children() if c.status() != psutil.STATUS_ZOMBIE]
        assert len(alive) == 2 and {c.pid for c in alive} != {c.pid for c in children}
    return calm, outcome


def assert_right(outcome, seconds):
    assert outcome.problems() == []
    assert outcome.answered > 10 * seconds and sum(outcome.errors.values()) < 0.02 * outcome.begun, outcome.errors
    assert outcome.injected["kills"] == 1 and outcome.injected["disconnects"] > 5 * seconds
    assert outcome.injected["5xx"] > 0


@pytest.mark.slow
def test_some_seconds(tmp_path):
    assert_right(loaded(tmp_path, 6, 6)[1], 6)


@pytest.mark.slow
def test_a_minute(tmp_path):
    calm, outcome = loaded(tmp_path, 60, 8)
    assert_right(outcome, 60)
    assert outcome.injected["hangs"] > 10
    assert outcome.p99_s < max(1.0, 4 * calm.p99_s)  # the latter on a machine that has other work


def test_a_wrong_answer_and_a_lost_call_would_show():
    outcome = Outcome(begun=2, answered=1)
    assert outcome.problems() == ["2 calls were begun, 1 ended"]
    outcome.wrong.append("asked for [1], got ['2']")
    assert outcome.problems() == ["asked for [1], got ['2']"]
    assert Outcome(begun=1, answered=1, late=1).problems() == ["1 calls ended beyond their deadline"]
