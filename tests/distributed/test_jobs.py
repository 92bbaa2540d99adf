"""The command: a run that starts its own Ray and takes it along, one that joins the head that it was submitted to."""

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

from agentrl.runs.checkpoint import latest_checkpoint
from agentrl.runs.read import read_info, read_metrics
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
    """A Ray head with its job server, on the loopback device: the job server's address."""
    from agentrl.engines.openrlhf import cpu

    port, jobs, agent, client, metrics = free_ports(5)
    start = [
        RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", port, "--num-cpus", "12",
        "--num-gpus", str(gpus), "--dashboard-host", "127.0.0.1", "--dashboard-port", jobs, "--temp-dir", str(folder),
        "--dashboard-agent-listen-port", agent, "--ray-client-server-port", client, "--metrics-export-port", metrics,
        "--disable-usage-stats",
    ]  # fmt: skip
    environment = os.environ | cpu.ENVIRONMENT | {"PYTHONPATH": str(ROOT), MARK: mark}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
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
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def command(model, runs_dir, name):
    """`agentrl train` of two short steps."""
    options = [
        "warm_start=null", f"model.path={model}", "world.people=24", "world.companies=10", "world.cities=8",
        "world.regions=6", "world.hops=[1]", "seed=3", "rollout.prompts_per_step=4", "rollout.group_size=4",
        "rollout.max_tokens_per_turn=16", "rollout.max_context=160", "train.steps=2", "eval.questions=0",
        f"log.runs_dir={runs_dir}", f"log.name={name}", "openrlhf.gpus_per_node=1",
    ]  # fmt: skip
    return [sys.executable, "-m", "agentrl", "train", "cluster_tiny", *(a for o in options for a in ("--set", o))]


def finished(run):
    return read_info(run).status == "finished" and [r["step"] for r in read_metrics(run)] == [0, 1]


def test_a_run_starts_its_own_ray_and_leaves_nothing(ray_folder, warm_model, tmp_path):
    mark = uuid4().hex
    environment = os.environ | {"PYTHONPATH": str(ROOT), MARK: mark, "RAY_TMPDIR": f"{ray_folder}/own"}
    Path(ray_folder, "own").mkdir()
    done = subprocess.run(
        command(warm_model, tmp_path, "own"), env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "1 policy workers (ZeRO-2) and 1 vLLM engines ready" in done.stdout + done.stderr
    assert finished(tmp_path / "own")
    wait_until_gone(mark)


def test_a_driver_that_disappears_takes_its_processes_along_and_its_run_goes_on(ray_folder, warm_model, tmp_path):
    mark = uuid4().hex
    environment = os.environ | {"PYTHONPATH": str(ROOT), MARK: mark, "RAY_TMPDIR": f"{ray_folder}/gone"}
    Path(ray_folder, "gone").mkdir()
    with Path(tmp_path, "log").open("w") as log:
        driver = subprocess.Popen(
            [*command(warm_model, tmp_path, "gone"), "--set", "train.steps=200", "--set", "log.checkpoint_every=1"],
            env=environment, stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip
    end = time.monotonic() + 300
    while not list((tmp_path / "gone").glob("checkpoints/step-000002/*")):
        assert driver.poll() is None and time.monotonic() < end, Path(tmp_path, "log").read_text()[-4000:]
        time.sleep(0.2)
    driver.kill()
    driver.wait()
    wait_until_gone(mark)  # Ray, workers and engines, and what they hold
    run = tmp_path / "gone"
    config = (run / "config.yaml").read_text()
    steps = latest_checkpoint(run)[1]["step"]
    (run / "config.yaml").write_text(config.replace("steps: 200", f"steps: {steps + 1}"))
    resume = [sys.executable, "-m", "agentrl", "resume", str(run)]
    done = subprocess.run(resume, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert read_info(run).status == "finished"
    wait_until_gone(mark)


def test_a_submitted_run_joins_the_head(ray_folder, warm_model, tmp_path):
    mark = uuid4().hex
    with head(f"{ray_folder}/head", 2, mark) as url:
        submit = [RAY, "job", "submit", "--address", url, "--", *command(warm_model, tmp_path, "submitted")]
        done = subprocess.run(submit, capture_output=True, text=True, timeout=600, cwd=ROOT)
        log = done.stdout + done.stderr
        assert done.returncode == 0, log[-6000:]
        assert "succeeded" in log and "1 policy workers" in log  # the run's own lines come back
        assert finished(tmp_path / "submitted")

        large = ["--set", "openrlhf.engines=4", "--set", "log.name=large"]
        refused = subprocess.run([*submit, *large], capture_output=True, text=True, timeout=300, cwd=ROOT)
        assert refused.returncode != 0
        assert "the Ray cluster has 2: lower openrlhf.gpus_per_node or openrlhf.engines" in refused.stdout
        assert not (tmp_path / "large").exists()
    wait_until_gone(mark)
