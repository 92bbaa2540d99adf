"""The stream of events, from a server in its own process."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from tests.dashboard.conftest import serving
from tests.dashboard.runs import append_rows, make_run


@contextmanager
def listening(url, after=None, last=None):
    """An iterator over (event, id, data)."""
    headers = {} if last is None else {"Last-Event-ID": last}
    params = {"run": "a"} if after is None else {"run": "a", "after": after}
    with httpx.stream("GET", f"{url}/api/events", params=params, headers=headers, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield events(answer.iter_lines())


def events(lines):
    fields = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line == "" and "event" in fields:
            yield fields["event"], fields.get("id"), json.loads(fields["data"])
        if line == "":
            fields = {}
        elif name:
            fields[name] = value


def wait(found, name):
    return next((i, d) for event, i, d in found if event == name)


@pytest.fixture
def live(tmp_path):
    run = make_run(tmp_path / "runs", "a", steps=4, every=0)
    with serving(tmp_path / "runs") as url:
        yield url, run, httpx.get(f"{url}/api/run?run=a").json()["cursor"]


def row(step, **more):
    return {"step": step, "time": 1.0, "reward": 0.5, **more}


def test_no_gap_and_no_duplicate_after_a_lost_connection(live):
    url, run, cursor = live
    seen = []
    with listening(url, after=cursor) as found:
        append_rows(run, [row(4), row(5)])
        while len(seen) < 2:
            last, data = wait(found, "rows")
            seen += [r["step"] for r in data["rows"]]
    append_rows(run, [row(6)])  # nobody is listening
    with listening(url, after=cursor, last=last) as found:  # the header counts, not the old address
        append_rows(run, [row(7)])
        while len(seen) < 4:
            _, data = wait(found, "rows")
            seen += [r["step"] for r in data["rows"]]
    assert seen == [4, 5, 6, 7]


def test_rows_carry_phases_and_not_finite_values(live):
    url, run, cursor = live
    with listening(url, after=cursor) as found:
        append_rows(run, [row(4) | {"loss": float("nan")}])
        data = {"rows": []}
        while not data["rows"]:  # bands alone may come first
            _, data = wait(found, "rows")
    assert data["rows"][0]["loss"] is None and data["phase"]["phase"] == "warmup" and data["bands"][-1]["to"] == 4


def test_alarms_and_status_arrive(live):
    url, run, cursor = live
    with listening(url, after=cursor) as found:
        assert wait(found, "status")[1]["status"] == "finished"
        with (run / "alarms.jsonl").open("a") as file:
            file.write('{"id": "x-1", "rule": "x", "step": 3, "level": "warn", "message": "m"}\n')
        while not (alarms := wait(found, "alarms")[1]["alarms"]):
            pass
        assert alarms[0]["id"] == "x-1"


def test_a_replaced_run_says_reset_and_a_deleted_one_gone(live, tmp_path):
    url, run, cursor = live
    with listening(url, after=cursor) as found:
        make_run(tmp_path / "runs", "a", "grpo_lr5e-4_mb2_s0", steps=9, every=0)
        wait(found, "reset")
        shutil.rmtree(run)
        assert wait(found, "gone")[1] == {"id": "a"}
        make_run(tmp_path / "runs", "a", steps=2, every=0)
        wait(found, "reset")


def test_a_wrong_cursor_says_reset(live):
    url, _, _ = live
    with listening(url, after="12.deadbeef") as found:
        wait(found, "reset")


def command(*arguments, **environment):
    import os

    environment = os.environ | environment
    line = [sys.executable, "-m", "agentrl.cli", "dashboard", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_binds_need_a_token(tmp_path, host):
    answer = command(tmp_path, "--host", host)
    assert answer.returncode == 2 and "AGENTRL_DASHBOARD_TOKEN" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_short_token_is_refused(tmp_path):
    answer = command(tmp_path, AGENTRL_DASHBOARD_TOKEN="short")
    assert answer.returncode == 2 and "short" not in answer.stderr.replace("has 5 characters", "")


def test_with_a_token_it_asks_for_it_and_never_prints_it(tmp_path):
    make_run(tmp_path, "a", steps=2)
    secret = "sesame-open-sesame-open"
    with serving(tmp_path, "--host", "0.0.0.0", AGENTRL_DASHBOARD_TOKEN=secret) as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/api/runs").status_code == 401
        assert httpx.get(f"{url}/api/runs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert httpx.get(f"{url}/?token={secret}").status_code == 303


@pytest.mark.slow
def test_a_port_in_use_and_a_missing_folder_are_explained(tmp_path, server):
    port = server.rpartition(":")[2]
    answer = command(tmp_path, "--port", port)
    assert answer.returncode == 2 and f"port {port}" in answer.stderr and "--port" in answer.stderr
    answer = command(tmp_path / "nowhere")
    assert answer.returncode == 2 and "is not a folder" in answer.stderr
    assert command(tmp_path, "--port", 99999999).returncode == 2
