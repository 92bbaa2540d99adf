"""`ray job submit` to a running head: the run joins the cluster that it was submitted to."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from agentrl.runlog import read_info, read_metrics
from tests.distributed.processes import MARK, wait_until_gone

pytestmark = pytest.mark.timeout(900)
RAY = str(Path(sys.executable).parent / "ray")
ROOT = Path(__file__).resolve().parents[2]


def free_ports(n):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [str(s.getsockname()[1]) for s in sockets]


@contextmanager
def head(folder, gpus, mark):
    """A Ray head with its job server, on the loopback device: (address of Ray, of the job server)."""
    from agentrl.engines.openrlhf import cpu

    port, jobs, agent, client, metrics = free_ports(5)
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", port, "--num-cpus", "12",
        "--num-gpus", str(gpus), "--dashboard-host", "127.0.0.1", "--dashboard-port", jobs, "--temp-dir", str(folder),
        "--dashboard-agent-listen-port", agent, "--ray-client-server-port", client, "--metrics-export-port", metrics,
        "--disable-usage-stats",
    ]  # fmt: skip
    environment = os.environ | cpu.ENVIRONMENT | {"PYTHONPATH": str(ROOT), MARK: mark}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    url = f"http://127.0.0.1:{jobs}"
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/api/version", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < end, "the job server did not come up within two minutes"
                time.sleep(0.5)
        yield f"127.0.0.1:{port}", url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def test_a_submitted_run_joins_the_head(ray_folder, warm_model, tmp_path):
    options = [
        "warm_start=null", f"model.path={warm_model}", "world.people=24", "world.companies=10", "world.cities=8",
        "world.regions=6", "world.hops=[1]", "seed=3", "rollout.prompts_per_step=4", "rollout.group_size=4",
        "rollout.max_tokens_per_turn=16", "rollout.max_context=160", "train.steps=2", "eval.questions=0",
        f"log.runs_dir={tmp_path}", "log.name=submitted", "openrlhf.gpus_per_node=1",
    ]  # fmt: skip
    train = [sys.executable, "-m", "agentrl", "train", "cluster_tiny", *(a for o in options for a in ("--set", o))]
    mark = uuid4().hex
    with head(f"{ray_folder}/head", 2, mark) as (_, url):
        submit = [RAY, "job", "submit", "--address", url, "--", *train]
        done = subprocess.run(submit, capture_output=True, text=True, timeout=600, cwd=ROOT)
        log = done.stdout + done.stderr
        assert done.returncode == 0, log[-6000:]
        assert "succeeded" in log and "1 policy workers" in log  # the run's own lines come back
        assert read_info(tmp_path / "submitted").status == "finished"
        assert [r["step"] for r in read_metrics(tmp_path / "submitted")] == [0, 1]

        large = ["--set", "openrlhf.engines=4", "--set", "log.name=large"]
        refused = subprocess.run([*submit, *large], capture_output=True, text=True, timeout=300, cwd=ROOT)
        assert refused.returncode != 0
        assert "the Ray cluster has 2: lower openrlhf.gpus_per_node or openrlhf.engines" in refused.stdout
        assert not (tmp_path / "large").exists()
    wait_until_gone(mark)
