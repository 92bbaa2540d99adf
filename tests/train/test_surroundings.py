"""Outages, signals, exceptions and closed pipes: real servers that are killed, real signals to real processes."""

import contextlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentrl.cli import main
from agentrl.errors import EnvError, OutageError, RunError
from agentrl.retriever.building import build_index
from agentrl.retriever.corpus import Passage
from agentrl.runs.checkpoint import list_checkpoints
from agentrl.runs.read import how_to_go_on, read_alarms, read_evals, read_info, read_metrics
from agentrl.train import patience
from agentrl.train.build import build_world
from agentrl.train.start import resume_run, train_run
from tests.small import files_of, small_config, train_until, without_times
from tests.train.test_start import agentrl, config_file, wait_for

FAULTY = {"id": "tests.train.surroundings:Faulty-v0"}


@pytest.fixture
def faulty(tmp_path, warm_model):
    """`faulty(name, **changes)`: the config of a run of Faulty-v0 whose fault is in the file `fault`."""
    questions = build_world(small_config(tmp_path)).questions("train")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))

    def make(name, **changes):
        base = {"world": None, "data": {"train": str(tmp_path / "q.jsonl"), "test": str(tmp_path / "q.jsonl")},
                "env": FAULTY | {"kwargs": {"fault": str(tmp_path / "fault")}}}  # fmt: skip
        changes = {"train": {"steps": 4}, "log": {"checkpoint_every": 0, "name": name}} | changes
        return small_config(tmp_path, warm_model, **(base | changes))

    return make


def during(step, act):
    """A `meddle` for `train_until`: `act()` before the step of that number."""

    def meddle(trainer):
        play = trainer.rollouts

        def rollouts(n):
            if n == step and trainer.step_number == step:
                act()
            return play(n)

        trainer.rollouts = rollouts

    return meddle


def steps(path):
    return [n for n, _ in list_checkpoints(path)]


# -------------------------------------------------------------------------------------------------------------- outages


@pytest.fixture(scope="module")
def encyclopedia(tmp_path_factory):
    """An index of the small world's passages, and its questions as a file."""
    folder = tmp_path_factory.mktemp("encyclopedia")
    world = build_world(small_config(folder))
    build_index((Passage(p["id"], p["title"], p["text"]) for p in world.passages), folder / "index")
    (folder / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in world.questions("train")))
    return folder, {k: v for k, v in world.env_kwargs.items() if k != "retriever"}


def search_server(index, port):
    return server("agentrl.retriever", "serve", str(index), "--port", str(port))


@contextlib.contextmanager
def server(*words):
    """A process of a module whose first line has its port; (process, port)."""
    command = [sys.executable, "-m", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = process.stdout.readline()
        yield process, int(re.search(r":(\d+)", line)[1])
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_search_server_that_is_killed_and_started_again_costs_nothing_but_time(tmp_path, warm_model, encyclopedia):
    """The run is the one that it would have been: same episodes, same rewards, same likelihoods."""
    folder, kwargs = encyclopedia

    def config(name, port):
        return small_config(
            tmp_path, warm_model, world=None, data={"train": str(folder / "q.jsonl")}, train={"steps": 4},
            env={"id": "tests.train.surroundings:Searching-v0", "kwargs": kwargs}, log={"name": name},
            retriever={"url": f"http://127.0.0.1:{port}", "timeout_s": 1.0},
        )  # fmt: skip

    with contextlib.ExitStack() as servers:
        process, port = servers.enter_context(search_server(folder / "index", 0))
        calm = train_run(config("calm", port), quiet=True).run_dir

        def outage():
            process.kill()
            process.wait()
            threading.Timer(3.0, lambda: servers.enter_context(search_server(folder / "index", port))).start()

        disturbed = train_until(config("disturbed", port), meddle=during(2, outage))
    same_but_rounding(read_metrics(calm), read_metrics(disturbed))
    [alarm] = [a for a in read_alarms(disturbed) if a["rule"] == "tool_outage"]
    assert (alarm["rule"], alarm["step"], alarm["level"]) == ("tool_outage", 2, "warn")
    assert "step 2: 16 of 16 episodes lost their tool" in alarm["message"]
    assert "tool_outage" not in {a["rule"] for a in read_alarms(calm)}
    assert read_metrics(disturbed)[2]["t_rollout_s"] > 3


@pytest.mark.slow
def test_an_environment_over_http_that_dies_and_comes_back_costs_nothing_but_time(tmp_path, warm_model, encyclopedia):
    folder, _ = encyclopedia

    def config(name, port):
        return small_config(
            tmp_path, warm_model, world=None, data={"train": str(folder / "q.jsonl")}, train={"steps": 4},
            env={"id": "tests.train.surroundings:Judged-v0", "kwargs": {"url": f"http://127.0.0.1:{port}"}},
            log={"name": name},
        )  # fmt: skip

    with contextlib.ExitStack() as servers:
        process, port = servers.enter_context(server("tests.train.surroundings", "0"))
        calm = train_run(config("calm", port), quiet=True).run_dir

        def outage():
            process.kill()
            process.wait()
            again = server("tests.train.surroundings", str(port))
            threading.Timer(2.0, lambda: servers.enter_context(again)).start()

        disturbed = train_until(config("disturbed", port), meddle=during(2, outage))
    same_but_rounding(read_metrics(calm), read_metrics(disturbed))
    [alarm] = [a for a in read_alarms(disturbed) if a["rule"] == "tool_outage"]
    assert alarm["step"] == 2 and "16 of 16 episodes lost their tool (ConnectError" in alarm["message"]


MCP_SERVER = [sys.executable, str(Path(__file__).parents[1] / "envs" / "mcp_server.py")]


def adding(tmp_path, warm_model, folder, name, **changes):
    """The config of a run of Adding-v0, and the file that says how its MCP server is."""
    state = tmp_path / f"{name}.state"
    base = {
        "world": None, "data": {"train": str(folder / "q.jsonl")}, "train": {"steps": 4}, "log": {"name": name},
        "env": {
            "id": "tests.train.surroundings:Adding-v0",
            "kwargs": {"server": [*MCP_SERVER, str(state)], "prompt_template": "{question}", "timeout_s": 20},
        },
    }  # fmt: skip
    return small_config(tmp_path, warm_model, **(base | changes)), state


def killed(state):
    """Kill the MCP server's process, and let no other start."""
    number = int(state.read_text())
    state.write_text("down")
    os.kill(number, signal.SIGKILL)


@pytest.mark.slow
def test_an_mcp_server_that_is_killed_and_comes_back_costs_nothing_but_time(tmp_path, warm_model, encyclopedia):
    pytest.importorskip("mcp")
    folder, _ = encyclopedia
    calm = train_run(adding(tmp_path, warm_model, folder, "calm")[0], quiet=True).run_dir
    config, state = adding(tmp_path, warm_model, folder, "disturbed")

    def back():
        while not read_alarms(tmp_path / "disturbed"):
            time.sleep(0.1)
        time.sleep(1)
        state.unlink()

    def outage():
        killed(state)
        threading.Thread(target=back, daemon=True).start()

    disturbed = train_until(config, meddle=during(2, outage))
    same_but_rounding(read_metrics(calm), read_metrics(disturbed))
    [alarm] = [a for a in read_alarms(disturbed) if a["rule"] == "tool_outage"]
    assert alarm["step"] == 2 and "16 of 16 episodes lost their tool (ToolFailure: the MCP server" in alarm["message"]
    assert read_metrics(disturbed)[2]["t_rollout_s"] > 1


@pytest.mark.slow
def test_an_mcp_server_that_stays_away_stops_the_run_with_the_last_step_saved(tmp_path, warm_model, encyclopedia):
    pytest.importorskip("mcp")
    config, state = adding(tmp_path, warm_model, encyclopedia[0], "a", rollout={"outage_wait_s": 2})
    with pytest.raises(
        OutageError, match=r"step 3: 16 of 16 episodes lost their tool \(ToolFailure: the MCP server .*2 s"
    ):
        train_until(config, meddle=during(3, lambda: killed(state)))
    assert steps(tmp_path / "a") == [3] and read_info(tmp_path / "a").status == "failed"
    state.unlink()
    assert resume_run(tmp_path / "a", quiet=True).result.status == "finished"


def same_but_rounding(first, second):
    """Equal rows but for what was sampled twice; in other batches, so that the last digits may differ."""
    for a, b in zip(without_times(first), without_times(second), strict=True):
        a, b = ({k: v for k, v in row.items() if "latency" not in k and k != "tokens"} for row in (a, b))
        assert a.keys() == b.keys()
        different = {k: (a[k], b[k]) for k in a if not _close(a[k], b[k])}
        assert not different, different


def _close(a, b):
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-5) if isinstance(a, float) and isinstance(b, float) else a == b


def test_a_judge_that_is_away_for_a_moment(faulty, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.1)
    calm = train_run(faulty("calm"), quiet=True).run_dir
    fault = tmp_path / "fault"

    def outage():
        fault.write_text("down")
        threading.Timer(0.5, fault.unlink).start()

    disturbed = train_until(faulty("disturbed"), meddle=during(2, outage))
    same_but_rounding(read_metrics(calm), read_metrics(disturbed))
    assert [a["rule"] for a in read_alarms(disturbed)].count("tool_outage") == 1


@pytest.mark.slow
def test_eval_waits_for_a_judge_that_is_away(faulty, tmp_path, capsys, monkeypatch):
    """By the run's own key, and the figures are those of a calm evaluation."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.1)
    run = train_run(faulty("a", train={"steps": 1}), quiet=True).run_dir
    fault = tmp_path / "fault"
    command = ["eval", str(run), "--questions", "8", "--json"]
    assert main(command) == 0
    calm = capsys.readouterr().out.splitlines()[-1]
    fault.write_text("down")
    threading.Timer(1.0, fault.unlink).start()
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == calm
    assert "q: 8 of 8 episodes lost their tool" in said.err and "q: the tool is back after" in said.err
    fault.write_text("down")
    assert main([*command, "--set", "rollout.outage_wait_s=0.3"]) == 2
    assert "did not come back within rollout.outage_wait_s = 0.3 s" in capsys.readouterr().err
    assert main([*command, "--set", "rollout.outage_wait_s=0"]) == 2
    assert "q: all 8 responses failed (ToolFailure: the judge answered 503)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tool_that_stays_away_stops_the_run_with_the_last_step_saved(faulty, tmp_path, capsys):
    fault = tmp_path / "fault"
    config = faulty("a", rollout={"outage_wait_s": 1.2})
    with pytest.raises(
        OutageError, match=r"step 3: 16 of 16 episodes lost their tool \(ToolFailure: the judge .*1.2 s"
    ):
        train_until(config, meddle=during(3, lambda: fault.write_text("down")))
    run = tmp_path / "a"
    info = read_info(run)
    assert (
        steps(run) == [3] and (info.status, info.step) == ("failed", 3) and how_to_go_on(run) == f"agentrl resume {run}"
    )
    fault.unlink()
    assert resume_run(run, quiet=True).result.status == "finished"
    same_but_rounding(read_metrics(train_run(faulty("whole"), quiet=True).run_dir), read_metrics(run))


def test_without_waiting_the_counts_are_true_and_the_step_is_saved(faulty, tmp_path):
    config = faulty("a", rollout={"outage_wait_s": 0})
    with pytest.raises(RunError, match=r"step 1: 16 of 16 rollouts failed .*503.*two left to compare. Fix the tool"):
        train_until(config, meddle=during(1, lambda: (tmp_path / "fault").write_text("down")))
    assert steps(tmp_path / "a") == [1]


# -------------------------------------------------------------------------------------------------- exceptions, rewards


def test_an_exception_of_the_environment_loses_no_whole_step(faulty, tmp_path):
    with pytest.raises(ZeroDivisionError):
        train_until(faulty("a"), meddle=during(3, lambda: (tmp_path / "fault").write_text("raise")))
    run = tmp_path / "a"
    assert steps(run) == [3] and read_info(run).status == "failed" and read_info(run).step == 3
    (tmp_path / "fault").unlink()
    resume_run(run, quiet=True)
    same_but_rounding(read_metrics(train_run(faulty("whole"), quiet=True).run_dir), read_metrics(run))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            "None",
            r"environment tests.train.surroundings:Faulty-v0|Faulty-v0: step\(\) returned the reward None \(NoneType\)",
        ),
        ("'1.0'", r"returned the reward '1.0' \(str\); it must return a number"),
    ],
)
def test_a_reward_that_is_no_number_is_one_line(faulty, tmp_path, reward, message):
    with pytest.raises(EnvError, match=message):
        train_until(faulty("a"), meddle=during(1, lambda: (tmp_path / "fault").write_text(reward)))
    assert steps(tmp_path / "a") == [1]


def test_rewards_that_are_nan_are_no_fault_of_a_tool(faulty, tmp_path):
    with pytest.raises(RunError, match=r"16 of 16 rollouts failed \(reward: .*nan.*Fix the environment's reward"):
        train_until(faulty("a"), meddle=during(1, lambda: (tmp_path / "fault").write_text("float('nan')")))
    assert steps(tmp_path / "a") == [1]
    assert {alarm["rule"] for alarm in read_alarms(tmp_path / "a")} <= {"cut_from_start"}  # none of a tool


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_last_whole_step(tmp_path, warm_model, number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests were started by nohup, whose children ignore SIGHUP")
    config = small_config(tmp_path, warm_model, train={"steps": 5000})
    run = tmp_path / "a"
    with agentrl("train", config_file(tmp_path, config)) as process:
        wait_for(lambda: len(read_metrics(run)) >= 3, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    done = len(read_metrics(run))
    assert process.returncode == 128 + number and "Traceback" not in err
    assert f"stopped after step {done} and saved; go on with: agentrl resume {run}" in err
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["step"], status["message"]) == ("stopped", done, f"stopped by {number.name}")
    assert steps(run) == [done] and not [*run.glob("checkpoints/.*")]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rollouts", "evaluation", "outage"])
def test_sigterm_does_not_wait_for_what_takes_long(faulty, tmp_path, what):
    """Slurm and Kubernetes wait for half a minute; here everything would go on for an hour."""
    changes = {
        "rollouts": {"rollout": {"prompts_per_step": 20, "group_size": 4000}},
        "evaluation": {"eval": {"questions": 8, "samples": 9000, "temperature": 1.0, "every": 0}},
        "outage": {},
    }[what]
    if what == "outage":
        (tmp_path / "fault").write_text("down")
    run = tmp_path / "a"
    with agentrl("train", config_file(tmp_path, faulty("a", **changes))) as process:
        wait_for(lambda: (run / "status.json").exists(), process)
        if what == "outage":
            wait_for(lambda: read_alarms(run), process)
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - began < 20, err
    assert read_info(run).status == "stopped" and steps(run) == [0]


@pytest.mark.slow
def test_a_hang_up_under_nohup_is_ignored(tmp_path, warm_model):
    config = small_config(tmp_path, warm_model, train={"steps": 12})
    command = ["nohup", sys.executable, "-m", "agentrl", "train", str(config_file(tmp_path, config))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    wait_for(lambda: len(read_metrics(tmp_path / "a")) >= 2, process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and len(read_metrics(tmp_path / "a")) == 12, err


def test_an_evaluation_that_a_stop_has_cut_off_is_made_by_the_resume(faulty, tmp_path):
    """After the last step all steps are done, and the run is not finished."""
    fault = tmp_path / "fault"
    config = faulty("a", eval={"questions": 4}, rollout={"outage_wait_s": 0.3})

    def meddle(trainer):
        evaluate = trainer.evaluate

        def failing():
            if trainer.step_number:
                fault.write_text("raise")
            return evaluate()

        trainer.evaluate = failing

    with pytest.raises(ZeroDivisionError):
        train_until(config, meddle=meddle)
    run = tmp_path / "a"
    assert steps(run) == [4] and [e["step"] for e in read_evals(run)] == [0] and read_info(run).status == "failed"
    fault.unlink()
    assert resume_run(run, quiet=True).result.status == "finished"
    assert [e["step"] for e in read_evals(run)] == [0, 4] and read_info(run).status == "finished"
    with pytest.raises(RunError, match="has finished its 4 steps"):
        resume_run(run, quiet=True)


# ---------------------------------------------------------------------------------------------------------------- pipes


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--json"])
def test_a_closed_pipe_does_not_end_a_run(tmp_path, warm_model, options):
    config = config_file(tmp_path, small_config(tmp_path, warm_model, train={"steps": 6}))
    command = f"{shlex.quote(sys.executable)} -m agentrl train {shlex.quote(str(config))} {options} 2>&1"
    shell = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}"], timeout=120, env=dict(os.environ)
    )
    assert shell.returncode == 0
    assert len(read_metrics(tmp_path / "a")) == 6 and read_info(tmp_path / "a").status == "finished"


# ------------------------------------------------------------------------------------------------------ best checkpoint


def test_the_best_checkpoint_is_kept(faulty, tmp_path, capsys):
    """The held-out metric goes up, down, up and down again; two are kept of the last, and the best."""
    values = iter([0.2, 0.5, 0.4, 0.5, 0.1, 0.2])

    def meddle(trainer):
        from agentrl.train import trainer as module

        real = module.evaluate

        def measured(*args, **kwargs):
            result = real(*args, **kwargs)
            result.summary["em"] = next(values)
            return result

        trainer_evaluate = trainer.evaluate

        def evaluate():
            module.evaluate = measured
            try:
                return trainer_evaluate()
            finally:
                module.evaluate = real

        trainer.evaluate = evaluate

    log = {"checkpoint_every": 1, "keep_checkpoints": 1, "keep_best": "em", "name": "a"}
    config = faulty("a", train={"steps": 5}, eval={"questions": 2, "every": 1}, log=log)
    run = train_until(config, meddle=meddle)
    assert [e["em"] for e in read_evals(run)] == [0.2, 0.5, 0.4, 0.5, 0.1, 0.2]
    assert steps(run) == [1, 5] and os.readlink(run / "checkpoints" / "best") == "step-000001"
    done = resume_run(run, checkpoint="best", quiet=True)
    assert done.result.status == "finished" and [e["step"] for e in read_evals(run)] == [0, 1, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------------ from other folders, targets


def test_the_best_checkpoint_is_a_target_from_any_folder(tmp_path, warm_model, monkeypatch, capsys):
    changes = {"eval": {"questions": 2, "every": 1}, "log": {"keep_best": "em", "checkpoint_every": 1}}
    run = train_run(small_config(tmp_path, warm_model, train={"steps": 2}, **changes), quiet=True).run_dir
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    best = run / "checkpoints" / "best"
    assert main(["eval", str(best), "--questions", "2"]) == 0
    assert f"{best.resolve().name}/model" in capsys.readouterr().out
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("steps: 2", "steps: 3", 1))
    assert main(["resume", str(best)]) == 0
    assert [row["step"] for row in read_metrics(run)] == [0, 1, 2]


def test_a_resume_that_cannot_be_built_has_changed_nothing(tmp_path, warm_model):
    run = train_run(small_config(tmp_path, warm_model, log={"checkpoint_every": 1}), quiet=True).run_dir
    config = run / "config.yaml"
    text = config.read_text().replace("steps: 2", "steps: 3", 1)
    config.write_text(text.replace("max_context: 160", "max_context: 100000"))
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(rows + '{"step": 2, "reward": 0.5}\n')  # after the last checkpoint
    before = files_of(run)
    assert main(["resume", str(run)]) == 2
    after = files_of(run)
    assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} <= {"run.lock", "status.json"}
    assert "max_context: 100000" in config.read_text()
