"""The judge against a real HTTP server: verdicts, deadline, cache, failures, and that its key is nowhere but there."""

import asyncio
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gymnasium
import pytest

import agentrl.envs
from agentrl.envs import judge as judges
from agentrl.envs.errors import ToolFailure
from agentrl.envs.judge import LLMJudge

assert agentrl.envs
KEY = "sk-very-secret-4711"
TASK = {"question": "Who wrote it?", "golden_answers": ["Edda Marn"]}


class Server:
    """An OpenAI-compatible server that finds right what contains the golden answer's surname."""

    def __init__(self):
        self.asked, self.replies, self.delay_s, self.status = [], [], 0.0, []
        self.now = self.most = 0  # requests at once
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, self.headers.get("Authorization"), body))
                outer.now += 1
                outer.most = max(outer.most, outer.now)
                time.sleep(outer.delay_s)
                outer.now -= 1
                case = json.loads(body["messages"][-1]["content"])
                verdict = "yes" if "Marn" in case["candidate_answer"] else "no"
                said = outer.replies.pop(0) if outer.replies else verdict
                payload = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
                self.send_response(outer.status.pop(0) if outer.status else 200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    judges._verdicts.clear()
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def test_a_verdict_is_asked_for_once(server, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    judge = LLMJudge(server.url, "judge", key_env="JUDGE_KEY")
    assert judge("Marn, Edda", ["Edda Marn"], "Who wrote it?") == 1.0
    assert judge("somebody", ["Edda Marn"], "Who wrote it?") == 0.0
    assert (
        LLMJudge(server.url, "judge")(" Marn, Edda ", ["Edda Marn"], "Who wrote it?") == 1.0
    )  # of another environment
    assert (judge("", ["x"]), judge("Marn " * 1000, ["x"])) == (0.0, 0.0)
    [(path, key, body), _] = server.asked
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", f"Bearer {KEY}", "judge", 0)
    case = {"question": "Who wrote it?", "golden_answers": ["Edda Marn"], "candidate_answer": "Marn, Edda"}
    assert json.loads(body["messages"][-1]["content"]) == case
    assert KEY not in caplog.text and KEY not in repr(vars(judge))


def test_equal_answers_of_one_moment_are_one_question(server):
    server.delay_s = 0.2
    judge = LLMJudge(server.url, "judge")

    async def run():
        return await asyncio.gather(*[judge.later(f"Marn {k % 4}", ["Edda Marn"], "q") for k in range(32)])

    assert asyncio.run(run()) == [1.0] * 32 and len(server.asked) == 4
    assert server.most > 1  # at the same time, not one after the other


@pytest.mark.parametrize("reply", ["", "perhaps", "yes and no", "1.0", "<think> yes </think>"])
def test_a_reply_that_is_no_verdict_is_a_failure_and_not_a_zero(server, reply):
    server.replies = [reply]
    judge = LLMJudge(server.url, "judge")
    with pytest.raises(ToolFailure, match="said neither yes nor no"):
        judge("Marn", ["Edda Marn"])
    assert judge("Marn", ["Edda Marn"]) == 1.0  # and it was not remembered


def test_thoughts_and_punctuation_around_a_verdict_are_passed_over(server):
    server.replies = ["<think> not no </think>\n Yes.", "**No**"]
    judge = LLMJudge(server.url, "judge")
    assert [judge(text, ["Edda Marn"]) for text in ("a", "b")] == [1.0, 0.0]


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server):
    judge = LLMJudge(server.url, "judge", deadline_s=5)
    server.status = [503, 429]
    assert judge("Marn", ["Edda Marn"]) == 1.0 and len(server.asked) == 3
    server.status = [401]
    with pytest.raises(ToolFailure, match="answered with status 401"):
        judge("Edda", ["Edda Marn"])
    assert len(server.asked) == 4


def test_the_deadline_holds_for_a_slow_server_and_for_none(server):
    server.delay_s = 3.0
    began = time.perf_counter()
    with pytest.raises(ToolFailure, match=r"no verdict within deadline_s = 0.3 s"):
        LLMJudge(server.url, "judge", deadline_s=0.3)("Marn", ["Edda Marn"])
    with pytest.raises(ToolFailure, match="no verdict within"):
        LLMJudge("http://127.0.0.1:9/v1", "judge", deadline_s=0.3)("Marn", ["Edda Marn"])
    assert time.perf_counter() - began < 2.0


@pytest.mark.parametrize(
    "reward, said",
    [
        ("llm_judge", "'llm_judge' needs url and model"),
        ({"llm_judge": {"url": "x", "model": "m"}}, r"give one such as http://127\.0\.0\.1:8000/v1"),
        (
            {"llm_judge": {"url": "http://me:key@h/v1", "model": "m"}},
            "holds a key: put that in an environment",
        ),
        ({"llm_judge": {"url": "http://h/v1", "model": "m", "key_env": "NOBODY_SET_IT"}}, "is not set"),
        ({"llm_judge": {"url": "http://h/v1", "model": "m", "key_env": KEY}}, "name of an environment variable"),
        ({"llm_judge": {"ulr": "http://h/v1", "model": "m"}}, "no parameter 'ulr'; did you mean 'url'"),
        ({"f1": {"weight": 1, "url": "x"}}, "is a function and takes a weight alone, not url"),
        ({"f1": 0.0, "exact_match": 0}, "the weights sum to nothing"),
    ],
)
@pytest.mark.parametrize("env", ["agentrl/Search-v0", "agentrl/Tools-v0", "agentrl/ToolCalls-v0"])
def test_a_reward_that_cannot_be_made_is_refused_when_the_environment_is_made(env, reward, said):
    with pytest.raises(ValueError, match=said) as error:
        gymnasium.make(env, reward=reward)
    assert KEY not in str(error.value)


ANSWERS = {
    "agentrl/Search-v0": "<answer> Marn </answer>",
    "agentrl/Tools-v0": "<answer> Marn </answer>",
    "agentrl/ToolCalls-v0": "Marn",
    "agentrl/SearchTools-v0": "Marn",
}


@pytest.mark.parametrize("env", ANSWERS)
def test_every_environment_of_answers_weighs_several_and_reports_each(server, env):
    reward = {"exact_match": 1.0, "f1": 0.5, "llm_judge": {"weight": 0.25, "url": server.url, "model": "judge"}}
    made = gymnasium.make(env, reward=reward, disable_env_checker=True).unwrapped
    made.reset(options=TASK)
    _, total, _, _, info = made.step(ANSWERS[env])
    assert info["rewards"] == {"exact_match": 0.0, "f1": pytest.approx(2 / 3), "llm_judge": 1.0}
    assert total == pytest.approx(0.5 * 2 / 3 + 0.25) and info["correct"] is False
    if hasattr(made, "astep"):
        judges._verdicts.clear()
        made.reset(options=TASK)
        assert asyncio.run(made.astep(ANSWERS[env]))[1] == pytest.approx(total)
    [asked, *_] = server.asked
    assert json.loads(asked[2]["messages"][-1]["content"])["question"] == TASK["question"]
