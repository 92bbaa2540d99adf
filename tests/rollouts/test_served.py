"""Models behind an OpenAI-compatible server, against a real one on this machine that also fails."""

import asyncio

import gymnasium
import pytest

from agentrl.config import RolloutConfig
from agentrl.envs.errors import ToolFailure
from agentrl.envs.search import SearchEnv
from agentrl.errors import AgentRLError, ConfigError
from agentrl.retriever.base import Hit
from agentrl.retriever.corpus import Passage
from agentrl.rollouts import served
from agentrl.rollouts.play import EnvPool
from agentrl.rollouts.served import ServedPlayer, Server, TextOnly, said, served_by
from agentrl.types import Task
from tests.openai_server import late, openai_server

TASKS = [Task(f"q{i}", {"question": f"who made thing {i}?", "golden_answers": [f"maker {i}"]}) for i in range(4)]
STOPS = ("</search>", "</answer>")


class Passages:
    quick = True

    def search_batch(self, queries, topk):
        return [
            [Hit(Passage("7", "Things", f"{q.split()[-1]} was made by maker {q.split()[-1]} \ud800"), 1.0)]
            for q in queries
        ]


class Broken:
    quick = True

    def search_batch(self, queries, topk):
        raise ToolFailure("the index is gone")


def agent(path, body):
    """Searches, reads, answers; never says the stop string, as servers leave it out."""
    if path.endswith("/chat/completions"):
        text = "\n".join(m["content"] for m in body["messages"])
    else:
        text = body["prompt"]
    if "<information>Doc" not in text:
        return "<search> " + text.partition("made thing ")[2].partition("?")[0]
    return "<answer> maker " + (text.partition("made by maker ")[2].split() or ["unknown"])[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(served, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(served, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.delenv("AGENTRL_API_KEY", raising=False)


def play(url, tasks=TASKS, *, searcher=None, role="user", config=None, prepare=False, **options):
    made = []

    def make():
        made.append(SearchEnv(retriever=searcher or Passages(), max_turns=2))
        return made[-1]

    server = Server(url, "tiny", **options)
    with EnvPool(make) as pool:
        player = ServedPlayer(
            sampler=TextOnly(),
            pool=pool,
            chat=None,
            config=config or RolloutConfig(),
            server=server,
            role=role,
            temperature=0.0,
        )
        try:
            if prepare:
                pool.run(server.prepare(STOPS, 0.0))
            return player.collect(tasks, 1)
        finally:
            pool.run(server.aclose())


@pytest.mark.parametrize("path", ["", "/chat/completions", "/completions"])
def test_episodes_are_played_with_texts(path):
    with openai_server(agent) as server:
        found = play(server.url + path)
        body = server.asked[0][1]
    assert [t.correct for t in found] == [True] * 4 and all(t.error is None and t.terminated for t in found)
    assert [t.turns[0].action for t in found] == [f"<search> {i}</search>" for i in range(4)]  # put back
    assert found[2].turns[0].info["query"] == "2" and found[2].turns[1].info["answer"] == "maker 2"
    assert "maker 2" in found[2].turns[0].observation and found[2].turns[0].action_ids == []
    assert body["model"] == "tiny" and body["temperature"] == 0.0 and body["stop"] == list(STOPS)
    assert body["max_tokens"] == RolloutConfig().max_tokens_per_turn
    assert server.asked[0][0] == "/v1" + (path or "/chat/completions")


@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_conversation_is_question_action_observation(role):
    with openai_server(agent) as server:
        [t] = play(server.url, TASKS[:1], role=role)
    messages = server.asked[-1][1]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", role]
    assert messages[1]["content"] == t.turns[0].action and messages[2]["content"] == t.turns[0].observation
    assert "thing 0" in messages[0]["content"] and "<information>" in messages[2]["content"]
    assert ("tool_call_id" in messages[2]) == (role == "tool")


def test_an_observation_is_cut_inside_its_tags():
    with openai_server(agent) as server:
        [t] = play(server.url, TASKS[:1], config=RolloutConfig(max_observation_tokens=3))
    assert t.turns[0].observation == "\n\n<information>Doc 1(Title:</information>\n\n"


def test_failures_are_tried_again_and_then_counted():
    calls = {}

    def answer(path, body):
        k = calls[len(calls)] = body["messages"][0]["content"]
        tries = sum(v == k for v in calls.values())
        if "made thing 1?" in k and tries == 1:
            return 429, {"retry-after": "0.2"}, {"error": {"message": "slow down"}}
        if "made thing 2?" in k and tries <= 2:
            return 500, {}, b"<html>oops</html>"
        if "made thing 3?" in k:
            return 503, {}, {"error": {"message": "overloaded"}}
        return agent(path, body)

    with openai_server(answer) as server:
        found = play(server.url, retries=3)
    assert [t.error is None for t in found] == [True, True, True, False] and all(t.correct for t in found[:3])
    assert found[3].error.startswith("server: ") and "503" in found[3].error and "overloaded" in found[3].error
    assert "4 attempts" in found[3].error and sum("made thing 3?" in v for v in calls.values()) == 4
    assert found[3].reward != found[3].reward  # NaN: nobody knows what it would have earned


def test_a_server_that_says_when_is_waited_for(monkeypatch):
    monkeypatch.setattr(served, "LONGEST_PAUSE_S", 10.0)
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    replies = [(429, {"retry-after": "7"}, {}), (429, {"retry-after": "soon"}, {}), (429, {"retry-after": "1e999"}, {})]
    with openai_server(lambda path, body: replies.pop(0) if replies else agent(path, body)) as server:
        assert play(server.url, TASKS[:1])[0].correct
    assert waits[0] == 7 and all(0 < w < 1 for w in waits[1:])


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (lambda *_: late(0.6, "x"), "did not answer within 0.2 s"),
        (lambda *_: (200, {}, b"not JSON"), "no completion: not JSON"),
        (lambda *_: (200, {}, {"choices": []}), "no completion"),
        (lambda *_: (200, {}, {"choices": [{"message": {"content": [1]}}]}), "sent a list where the text"),
        (lambda *_: (200, {}, b"[" * 100_000), "no completion"),
        (lambda *_: (400, {}, {"error": {"message": "this prompt is filtered"}}), "this prompt is filtered"),
        (lambda *_: (400, {}, {"error": {"message": "maximum context length is 4096 tokens"}}), "context: "),
        (lambda *_: (302, {"location": "http://127.0.0.1:9/"}, b""), None),
    ],
)
def test_odd_answers_are_failed_episodes(answer, wanted):
    with openai_server(answer) as server:
        if wanted is None:  # a redirect would carry the key elsewhere: it is not followed
            with pytest.raises(AgentRLError, match="302"):
                play(server.url, TASKS[:1])
            return
        [t] = play(server.url, TASKS[:1], retries=1, timeout_s=0.2)
    assert t.error is not None and wanted in t.error and not t.correct


def test_a_context_that_is_full_ends_the_episode_as_wrong():
    def answer(path, body):
        full = len(body["messages"]) > 1
        return (400, {}, {"error": {"message": "context_length_exceeded: 9 tokens"}}) if full else agent(path, body)

    with openai_server(answer) as server:
        [t] = play(server.url, TASKS[:1])
    assert t.error is None and t.truncated and not t.correct and len(t.turns) == 1 and t.reward == 0.0


def test_nothing_said_and_a_cut_turn_are_turns():
    replies = [{"text": None, "finish_reason": "stop"}, {"text": "<search> a", "finish_reason": "length"}, "<answer> b"]
    with openai_server(lambda *_: replies.pop(0)) as server:
        [t] = play(server.url, TASKS[:1])
    assert [u.action for u in t.turns] == ["", "<search> a", "<answer> b</answer>"]
    assert [u.stop for u in t.turns] == ["stop", "length", "stop"] and t.error is None and not t.correct


def test_a_tool_that_fails_is_a_failed_episode():
    with openai_server(agent) as server:
        [t] = play(server.url, TASKS[:1], searcher=Broken())
    assert t.error == "ToolFailure: the index is gone"


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    def answer(path, body):
        return 401, {}, {"error": {"message": "bad key sk-secret-1"}}

    with openai_server(answer) as server:
        with pytest.raises(AgentRLError, match=r"401.*AGENTRL_API_KEY, which is not set"):
            play(server.url, TASKS[:1])
        assert "authorization" not in server.asked[-1][2]
        monkeypatch.setenv("OTHER", "sk-secret-1")
        with pytest.raises(AgentRLError) as caught:
            play(server.url, TASKS[:1], key_variable="OTHER")
        assert server.asked[-1][2]["authorization"] == "Bearer sk-secret-1"
    assert "sk-secret" not in str(caught.value) and "variable OTHER" in str(caught.value)
    assert "sk-secret" not in repr(Server(server.url, "m", key_variable="OTHER"))
    monkeypatch.setenv("OTHER", "two words\n")
    with pytest.raises(ConfigError, match="the key in OTHER has characters"):
        Server(server.url, "m", key_variable="OTHER")


def test_a_server_may_want_other_parameters():
    def answer(path, body):
        for name in ("max_tokens", "temperature", "stop"):
            if name in body:
                also = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                return 400, {}, {"error": {"message": f"Unsupported parameter: '{name}'.{also}"}}
        return agent(path, body) + (" </answer> and more" if "made by" in str(body) else "</search> and more")

    with openai_server(answer) as server:
        found = play(server.url, prepare=True)
    assert all(t.correct for t in found)
    assert found[0].turns[0].action == "<search> 0</search>"  # cut here
    last = server.asked[-1][1]
    assert last["max_completion_tokens"] == RolloutConfig().max_tokens_per_turn
    assert not {"max_tokens", "temperature", "stop"} & set(last)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (lambda *_: (404, {}, {"error": {"message": "no model tiny"}}), "no model tiny"),
        (lambda *_: (400, {}, {"error": {"message": "no"}}), "refuses a request.*no"),
        (lambda *_: (500, {}, b"down"), "does not answer a first question.*500.*Is the server running"),
    ],
)
def test_a_wrong_server_is_told_before_anything_is_played(answer, wanted):
    with openai_server(answer) as server, pytest.raises(AgentRLError, match=wanted):
        play(server.url, prepare=True, retries=1)


def test_the_only_model_of_a_server_needs_no_name():
    with openai_server(agent) as server:
        assert served_by(server.url, "").model == "tiny"
        server.models = ("a", "b")
        with pytest.raises(AgentRLError, match="serves a, b: name the one"):
            served_by(server.url, "")
    with pytest.raises(AgentRLError, match="does not say what is served"):
        served_by(server.url, "", retries=0)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://h/v1", "http://", "http://me:secret@h/v1", "http://h/v1?key=secret"]
)
def test_an_address_that_cannot_be_meant(url):
    with pytest.raises(ConfigError) as caught:
        Server(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "finish", "reason", "wanted"),
    [
        ("a <search> b", "stop", None, ("a <search> b</search>", "stop")),
        ("a <search> b", "length", None, ("a <search> b", "length")),
        ("a <search> b </search> c", "stop", None, ("a <search> b </search>", "stop")),
        ("a <search> b </search> c", "length", None, ("a <search> b </search>", "stop")),
        ("<search> or <answer> b", "stop", None, ("<search> or <answer> b</answer>", "stop")),
        ("<search> or <answer> b", "stop", "</search>", ("<search> or <answer> b</search>", "stop")),
        ("plain", "stop", None, ("plain", "stop")),
        ("plain", "stop", 151645, ("plain", "stop")),  # vLLM names a token that ended it
        ("", None, None, ("", "stop")),
    ],
)
def test_the_stop_string_is_put_back(text, finish, reason, wanted):
    assert said(text, STOPS, finish, reason) == wanted


def test_a_player_of_texts_has_no_tokens():
    with pytest.raises(TypeError, match="no token ids"):
        asyncio.run(TextOnly().sample([1], max_tokens=1))
    assert isinstance(SearchEnv(retriever=Passages()), gymnasium.Env)
