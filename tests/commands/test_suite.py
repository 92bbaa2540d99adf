"""`eval --suite qa7` and `eval --url`: a run, a server, both; a kill in the middle."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from agentrl.cli import main
from agentrl.data.suites import QA7
from agentrl.rollouts import served
from tests.openai_server import openai_server
from tests.qa7 import released_row, released_rows, write_parquet

TABLE = {*QA7, "in-domain", "out-of-domain", "average"}


@pytest.fixture
def questions(tmp_path):
    return write_parquet(tmp_path / "test.parquet", released_rows())


@pytest.fixture
def config(tmp_path):
    """Questions with a tool: the calculator, so that nothing is searched."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: {path: none}\ndata: {train: none.jsonl}\nenv: {id: agentrl/ToolCalls-v0}\n"
        "rollout: {max_turns: 3}\neval: {batch: 4}\n"
    )
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(served, "FIRST_PAUSE_S", 0.001)
    monkeypatch.delenv("AGENTRL_API_KEY", raising=False)


def knows(path, body):
    """A model that calls a tool first, and knows the answer unless it is of MuSiQue."""
    question = body["messages"][0]["content"].partition("made thing ")[2]
    if len(body["messages"]) == 1 and question:
        return '<tool_call>{"name": "calculator", "arguments": {"expression": "1+1"}}</tool_call>'
    if "musique" in question:
        return "I do not know"
    return f"<answer> The maker {question}{', perhaps' if 'popqa' in question else ''} </answer>"


def knows_at_once(path, body):
    return "<answer> maker " + str(body).partition("made thing ")[2].partition("?")[0]


def result(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_server_gets_the_table(questions, config, capsys):
    command = ["eval", "tiny", str(config), "--suite", f"qa7:{questions}"]
    with openai_server(knows) as server:
        assert main([*command, "--url", server.url, "--json"]) == 0
        out = result(capsys)
        asked = len(server.asked)
        assert main([*command, "--url", server.url, "--csv"]) == 0
        again = capsys.readouterr()
        assert len(server.asked) == asked == 1 + 21 * 2  # one first word; nothing is asked twice
    scores = out["results"]["greedy"]
    assert set(scores) == TABLE and out["model"] == "tiny" and out["broken_rows"] == []
    em = {name: s["em"]["value"] for name, s in scores.items()}
    assert em == {**dict.fromkeys(QA7, 1.0), "musique": 0.0, "popqa": 0.0, "in-domain": 1.0, "out-of-domain": 0.6,
                  "average": pytest.approx(5 / 7)}  # fmt: skip
    assert scores["popqa"]["substring"]["value"] == 1.0 and 0.5 < scores["popqa"]["f1"]["value"] < 1.0
    assert scores["nq"]["searches"] == 1.0 and scores["nq"]["seconds"] > 0 and scores["nq"]["questions"] == 3
    assert scores["nq"]["em"]["low"] < 1.0 == scores["nq"]["em"]["high"]
    rows = list(csv.DictReader(again.out.splitlines()))
    assert {r["set"] for r in rows} == TABLE and float(rows[0]["em"]) == 1.0
    assert "responses are kept in evaluations/" in again.err


def test_a_run_and_a_server_are_compared_on_the_same_questions(finished_run, questions, capsys, tmp_path):
    command = ["eval", "tiny", str(finished_run / "config.yaml"), "--suite", f"qa7:{questions}"]
    command += ["--beside", str(finished_run), "--questions", "2", "--results", str(tmp_path / "kept")]
    with openai_server(knows_at_once) as server:
        assert main([*command, "--url", server.url, "--json"]) == 0
        out = result(capsys)
        assert main([*command, "--url", server.url, "--markdown"]) == 0
    name = finished_run.name
    assert set(out["results"]) == {"tiny greedy", f"{name} greedy"} and out["models"]["tiny"] == "tiny"
    assert out["results"]["tiny greedy"]["average"]["em"]["value"] == 1.0
    [(label, cells)] = out["differences"].items()
    assert label == f"{name} greedy − tiny greedy" and set(cells) == TABLE
    run = out["results"][f"{name} greedy"]["average"]["em"]["value"]
    assert run < 1.0 and cells["average"]["em"]["value"] == pytest.approx(run - 1.0)
    text = capsys.readouterr().out
    assert text.count("\n|---|") == 3 and "NQ" in text and "nq 2 of 3" in text and "− tiny greedy" in text
    assert len(list((tmp_path / "kept").glob("*.jsonl"))) == 2


def test_a_run_keeps_its_responses_and_goes_on(finished_run, questions, capsys, tmp_path):
    command = ["eval", str(finished_run), "--suite", f"qa7:{questions}", "--results", str(tmp_path / "kept"), "--json"]
    assert main(command) == 0
    whole = result(capsys)
    [file] = (tmp_path / "kept").glob("*.jsonl")
    lines = file.read_text().splitlines()
    assert len(lines) == 21 and whole["responses"] == [str(file)]
    file.write_text("\n".join(lines[:10]) + "\n" + lines[10][:30])
    assert main(command) == 0
    said = capsys.readouterr()
    assert "10 of 21 responses are in" in said.err and "11 are left" in said.err
    again = json.loads(said.out.splitlines()[-1])
    for scores in (*whole["results"]["greedy"].values(), *again["results"]["greedy"].values()):
        scores.pop("seconds"), scores.pop("seconds_p95")
    assert again == whole
    other = [*command, "--set", "rollout.max_tokens_per_turn=12"]  # another task: nothing of it is there
    assert main(other) == 0 and len(list((tmp_path / "kept").glob("*.jsonl"))) == 2


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(questions, config, tmp_path, capsys):
    """kill -9 while the server answers slowly; what had ended is not asked again."""
    command = ["eval", "tiny", str(config), "--suite", f"qa7:{questions}", "--json", "--set", "eval.batch=2"]
    enough, wait = threading.Event(), threading.Event()
    answers = {}

    def slow(path, body):
        question = body["messages"][0]["content"].partition("made thing ")[2]
        if len(body["messages"]) > 1:
            answers[question] = answers.get(question, 0) + 1
            if len(answers) == 12 and not wait.is_set():
                enough.set()
                wait.wait(60)
        return knows(path, body)

    with openai_server(slow) as server:
        code = f"import sys; from agentrl.cli import main; sys.exit(main({[*command, '--url', server.url]!r}))"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not enough.wait(0.1):
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        wait.set()
        [file] = (tmp_path / "evaluations").glob("*.jsonl")
        kept = [json.loads(line)["id"] for line in file.read_text().splitlines()]
        assert 8 <= len(kept) <= 12
        assert main([*command, "--url", server.url]) == 0
    said = capsys.readouterr()
    assert f"{len(kept)} of 21 responses are in" in said.err
    assert json.loads(said.out.splitlines()[-1])["results"]["greedy"]["average"]["em"]["value"] == pytest.approx(5 / 7)
    twice = sum(n > 1 for n in answers.values())
    assert len(answers) == 21 and twice <= 2  # those under way when it was killed


def test_failed_responses_are_counted_and_asked_again(questions, config, capsys):
    away = {"on": True}

    def answer(path, body):
        refused = away["on"] and "nq-1" in str(body)
        return (400, {}, {"error": {"message": "filtered"}}) if refused else knows(path, body)

    command = ["eval", "tiny", str(config), "--suite", f"qa7:{questions}", "--url"]
    with openai_server(answer) as server:
        assert main([*command, server.url]) == 0
        text = capsys.readouterr().out
        assert "2 (1 failed)" in text and "1 responses failed and are left out (server: " in text and "filtered" in text
        away["on"] = False
        assert main([*command, server.url, "--json"]) == 0
        assert result(capsys)["results"]["greedy"]["nq"]["questions"] == 3
        answer_all = [str(body) for _, body, _ in server.asked if "nq-1" in str(body)]
        assert len(answer_all) == 1 + 2


def test_broken_rows_and_missing_sets_are_told(config, tmp_path, capsys):
    rows = [released_row("nq", i, f"who made thing nq-{i}", [f"maker nq-{i}"]) for i in range(120)]
    rows[3]["question"] = ""
    file = write_parquet(tmp_path / "test.parquet", rows)
    command = ["eval", "tiny", str(config), "--suite", f"qa7:{file}", "--questions", "2"]
    with openai_server(knows) as server:
        assert main([*command, "--url", server.url]) == 0
    text = capsys.readouterr().out
    assert "1 rows are broken and were not asked:" in text and f"{file} row 4: " in text
    assert "without triviaqa, popqa" in text and "in-domain" not in text and "nq 2 of 119" in text


def test_sampled_responses_are_rows_of_their_own(questions, config, capsys):
    command = [
        "eval",
        "tiny",
        str(config),
        "--suite",
        f"qa7:{questions}",
        "--questions",
        "1",
        "--samples",
        "2",
        "--json",
    ]
    with openai_server(knows) as server:
        assert main([*command, "--url", server.url]) == 0
        temperatures = {body["temperature"] for _, body, _ in server.asked}
    assert set(result(capsys)["results"]) == {"greedy", "T=1"} and temperatures == {0.0, 1.0}


def test_a_run_names_the_environment_and_the_server_the_model(finished_run, capsys):
    with openai_server(lambda *_: "<answer> x", models=("the-run",)) as server:
        assert main(["eval", str(finished_run), "--url", server.url, "--questions", "2", "--json"]) == 0
        assert server.asked[-1][1]["model"] == "the-run"
    out = result(capsys)
    assert out["model"] == "the-run" and set(out["results"]["greedy"]) == {"held-out"}


def test_a_model_without_a_config_has_the_suites_own(finished_run, questions, capsys):
    command = ["eval", "tiny", "--suite", f"qa7:{questions}", "--questions", "1", "--json"]
    with openai_server(knows_at_once) as server:
        command += ["--url", server.url, "--set", "retriever.url=null"]
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "environment and limits are those of search_r1_grpo_3b" in said and "no retriever is set" in said
        assert main([*command, "--set", f"retriever.index={finished_run / 'index'}"]) == 0
    assert result(capsys)["results"]["greedy"]["nq"]["em"]["value"] == 1.0


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--csv"], "--csv is of --suite qa7 and of --url"),
        (["--results", "x"], "--results is of --suite qa7 and of --url"),
        (["--key-env", "X"], "--key-env is of a server"),
        (["--request-timeout", "0"], "--request-timeout 0"),
        (["--suite", "qa7:nowhere.parquet"], "qa7:nowhere.parquet does not exist"),
        (["--url", "localhost", "--suite", "qa7:test.parquet"], "--url localhost: give the server's address"),
        (["--url", "http://127.0.0.1:9/v1", "--checkpoint", "1"], "--checkpoint is for a run's own weights"),
        (
            ["--url", "http://127.0.0.1:9/v1", "--set", "rollout.tools=native", "--set", "rollout.style=chat"],
            "rollout.tools",
        ),
    ],
)
def test_mistakes_are_named(finished_run, questions, capsys, more, wanted):
    assert main(["eval", str(finished_run), *more]) == 2
    assert wanted in capsys.readouterr().err


def test_a_run_of_several_environments_needs_a_config_of_one(tmp_path, questions, capsys):
    path = tmp_path / "several.yaml"
    path.write_text(
        "model: {path: none}\nenv:\n  - {id: agentrl/ToolCalls-v0, name: calls, data: {train: a.jsonl}}\n"
        "  - {id: agentrl/Calculator-v0, name: tags, data: {train: b.jsonl}}\n"
    )
    assert main(["eval", "tiny", str(path), "--suite", f"qa7:{questions}", "--url", "http://127.0.0.1:9/v1"]) == 2
    assert "has several environments (calls, tags)" in capsys.readouterr().err
