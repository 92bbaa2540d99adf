"""OpenEnv's wire from both sides, without the package: `tests/peers` has the real client, server and validator."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import gymnasium
import httpx
import pytest

import agentrl.envs  # noqa: F401  (registers them)
from agentrl.cli import main
from agentrl.envs.checker import CHECKS, check
from agentrl.envs.errors import TaskError, ToolFailure
from agentrl.envs.others import serving
from agentrl.envs.others.serving import Service
from agentrl.errors import AgentRLError, EnvError

pytest.importorskip("websockets")
from websockets.asyncio.server import serve as serve_websockets

ROWS = [
    {"id": "a", "question": "17*23+5?", "golden_answers": ["396"]},
    {"id": "b", "question": "2+2?", "golden_answers": ["4"]},
]


@contextmanager
def looping():
    """An event loop on a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


@pytest.fixture(scope="module")
def url():
    """`agentrl env serve` of the calculator, without its process."""
    import uvicorn

    service = Service("Sums", "sums", {"train": ROWS, "test": ROWS[1:]}, max_sessions=24)
    served = serving.Served(lambda: gymnasium.make("agentrl/Calculator-v0", disable_env_checker=True), service)
    listener = serving._bound("127.0.0.1", 0)
    config = uvicorn.Config(served.app(None), log_level="error", lifespan="off", ws_ping_interval=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(5)


def openenv(**arguments):
    arguments = {"timeout_s": 5.0, **arguments}
    return gymnasium.make("agentrl/OpenEnv-v0", disable_env_checker=True, **arguments).unwrapped


def test_an_episode_over_the_wire_is_the_episode(url):
    env, own = openenv(url=url), gymnasium.make("agentrl/Calculator-v0", disable_env_checker=True)
    prompt, info = env.reset(options={"split": "test", "index": 0})
    assert prompt == own.reset(options=ROWS[1])[0] and info["observation_parts"]["body"] == prompt
    for action in ("<calc> 2+2 </calc>", "nothing", "<answer> 4 </answer>"):
        text, reward, terminated, truncated, info = env.step(action)
        wanted = own.step(action)
        assert (text, reward, terminated, truncated) == wanted[:4]
        assert all(info[k] == wanted[4][k] for k in ("kind", "valid"))
    assert info["correct"] and env.state()["step_count"] == 3
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("after the end")
    env.reset(options={"reset": {"task": {"question": "1+1?", "golden_answers": ["2"]}}})
    assert env.step("<answer> 2 </answer>")[1] == 1.0
    for _ in range(3):
        env.reset(options={"id": "x"})
        ended = [env.step("again")[3] for _ in range(4)]
    assert ended == [False, False, False, True]
    env.close()


def test_a_group_plays_one_task_on_connections_that_stay(url):
    envs = [openenv(url=url) for _ in range(24)]

    async def play():
        first = [(await env.areset(seed=i, options={"id": "q"}))[0] for i, env in enumerate(envs)]
        sockets = [env._socket for env in envs]
        second = {i: (await envs[0].areset(seed=9, options={"id": f"q{i}"}))[0] for i in range(8)}
        assert envs[0]._socket is sockets[0]
        full = openenv(url=url)
        with pytest.raises(ToolFailure, match=r"24 sessions are open.*CAPACITY_REACHED"):
            await full.areset(options={"id": "q"})
        for env in envs:
            await env.aclose()
        return first, set(second.values())

    first, others = asyncio.run(play())
    assert len(set(first)) == 1 and len(others) == 2


def test_tasks_are_listed_without_their_answers(url, capsys):
    assert main(["env", "tasks", "agentrl/OpenEnv-v0", "--set", f"url={url}"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["id"], r["index"], r["question"]) for r in rows] == [("train-0", 0, "17*23+5?"), ("train-1", 1, "2+2?")]
    assert "396" not in httpx.post(f"{url}/Sums/tasks", json={"split": "train"}).text
    assert main(["env", "tasks", "agentrl/OpenEnv-v0", "--set", f"url={url}", "--split", "nope"]) == 2
    assert "no split 'nope'; it has train, test" in capsys.readouterr().err
    assert main(["env", "tasks", "agentrl/Calculator-v0"]) == 2
    assert "lists no tasks" in capsys.readouterr().err


def test_http_answers_as_openenv_does(url):
    with httpx.Client(base_url=url) as client:
        assert client.get("/health").json() == {"status": "healthy"}
        assert client.get("/metadata").json() == {"name": "Sums", "description": "sums"}
        assert client.get("/state").json() == {"episode_id": None, "step_count": 0}
        assert set(client.get("/schema").json()) == {"action", "observation", "state"}
        assert client.post("/mcp", json={"id": 1, "method": "tools/list"}).json()["error"]["code"] == -32601
        assert client.post("/step", json={"action": {"message": "x"}}).status_code == 500
        begun = client.post("/reset", json={"split": "train", "index": 1, "episode_id": "e"}).json()
        assert "2+2?" in begun["observation"]["text"] and begun["reward"] is None and begun["done"] is False
        assert client.post("/step", json={"action": {"message": 3}}).status_code == 422
        done = client.post("/step", json={"action": {"message": "<answer> 4 </answer>"}}).json()
        assert (done["reward"], done["done"]) == (1.0, True) and client.get("/state").json()["episode_id"] == "e"
        assert client.get("/Sums/splits").json()[1] == {"name": "test", "type": "test"}
        post = {
            "num_tasks": ({"split": "train"}, 200), "task": ({"split": "train", "index": 2}, 400),
            "task_range": ({"split": "train", "start": "0"}, 422), "tasks": ({"split": "nope"}, 400),
        }  # fmt: skip
        for path, (body, status) in post.items():
            assert client.post(f"/Sums/{path}", json=body).status_code == status
        assert client.get("/Other/splits").status_code == 404
        assert client.post("/reset", content=b"\xff" * 10).status_code == 200  # nothing said: any task


def test_no_other_machine_and_no_web_page_is_answered(url):
    assert httpx.get(f"{url}/health", headers={"Host": "evil.example"}).status_code == 403
    assert httpx.get(f"{url}/health", headers={"Origin": "https://evil.example"}).status_code == 403

    async def page():
        from websockets.asyncio.client import connect

        async with connect(url.replace("http", "ws") + "/ws", origin="https://evil.example", proxy=None):
            pass

    with pytest.raises(Exception, match="403"):
        asyncio.run(page())


def test_a_token_is_asked_for(monkeypatch):
    from starlette.testclient import TestClient

    served = serving.Served(lambda: gymnasium.make("agentrl/Calculator-v0"), Service("Sums"))
    client = TestClient(served.app("secret"))
    assert client.get("/health").status_code == 200 and client.get("/metadata").status_code == 401
    assert client.get("/metadata", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/metadata", headers={"Authorization": "Bearer secret"}).status_code == 200
    monkeypatch.delenv(serving.TOKEN_VARIABLE, raising=False)
    with pytest.raises(AgentRLError, match=serving.TOKEN_VARIABLE):
        serving.serve(lambda: None, Service("Sums", host="0.0.0.0"))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "INVALID_JSON"),
        ("[" * 100_000, "INVALID_JSON"),
        ("[]", "UNKNOWN_TYPE"),
        ('{"type": "fly"}', "UNKNOWN_TYPE"),
        ('{"type": "step", "data": {"message": "x"}}', "EXECUTION_ERROR"),
        ('{"type": "step", "data": {"text": "x"}}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": 3}', "VALIDATION_ERROR"),
        ('{"type": "reset", "data": {"split": "nope", "index": 0}}', "VALIDATION_ERROR"),
        ('{"type": "reset", "data": {"index": true}}', "VALIDATION_ERROR"),
        ('{"type": "reset", "data": {"seed": -1}}', "VALIDATION_ERROR"),
        ('{"type": "reset", "data": {"task": {"question": "?"}}}', "VALIDATION_ERROR"),
    ],
)
def test_the_server_answers_any_message(message, code):
    served = serving.Served(lambda: None, Service("Sums", splits={"train": ROWS}))

    async def ask():
        session = serving.Session(gymnasium.make("agentrl/Calculator-v0", disable_env_checker=True), {"train": ROWS})
        return await served._answer(session, message)

    answer = json.loads(asyncio.run(ask()))
    assert (answer["type"], answer["data"]["code"]) == ("error", code)


def test_a_failing_tool_is_an_error_on_the_wire_and_no_reward():
    def broken(_):
        raise ToolFailure("the calculator is out")

    async def play():
        env = gymnasium.make("agentrl/Calculator-v0", disable_env_checker=True, tool=broken)
        session = serving.Session(env, {})
        await session.reset({})
        return await serving._played(session.step({"message": "<calc> 1 </calc>"}))

    answer, fault = asyncio.run(play())
    assert answer is None and "the calculator is out" in fault["data"]["message"]
    with pytest.raises(TaskError, match="none: serve with --tasks"):
        serving.task_at({}, "train", 0)


def test_it_passes_the_checker(url):
    findings = check("agentrl/OpenEnv-v0", url=url)
    assert [f.check for f in findings if f.level != "ok"] == ["stop strings", "hostile tool"]
    assert [f.check for f in findings] == [c[0] for c in CHECKS]


# ------------------------------------------------------------------------------------------- servers that misbehave

SEEN = {"type": "observation", "data": {"observation": {"text": "t"}, "reward": 0, "done": False}}


@contextmanager
def rude(*answers):
    """A server that gives these answers, one a message; None is none, b"" hangs up."""
    todo = list(answers)

    async def handle(socket):
        async for _ in socket:
            answer = todo.pop(0)
            if answer == b"":
                return
            if answer is not None:
                await socket.send(answer if isinstance(answer, str | bytes) else json.dumps(answer))

    with answering(handle) as url:
        yield url


@contextmanager
def answering(handle):
    """A server on a thread whose connections `handle` answers."""

    async def start():
        return await serve_websockets(handle, "127.0.0.1", 0)

    async def stop():
        server.close()
        await server.wait_closed()

    with looping() as loop:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(5)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(5)


def changed(**data):
    return {"type": "observation", "data": SEEN["data"] | data}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, r"did not answer within 0.3 s"),
        (b"", "ConnectionClosed"),
        ("{", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        (b"\xff\x00", "no JSON object"),
        ([1], "no JSON object"),
        ({"type": "error", "data": {"message": "out of cheese", "code": "EXECUTION_ERROR"}}, "out of cheese .EXEC"),
        ({"type": "error", "data": "no"}, "says None"),
        ({"type": "state", "data": {}}, "an observation is wanted"),
        (changed(observation="text"), "an observation is wanted"),
        (changed(reward="much"), "a number and a truth"),
        (changed(reward=float("nan")), "a number and a truth"),
        (changed(done="no"), "a number and a truth"),
    ],
)
def test_a_wrong_answer_is_a_failed_episode_and_the_next_goes_on(answer, why):
    with rude(SEEN, answer, SEEN, changed(reward=1, done=True)) as url:
        env = openenv(url=url, timeout_s=0.3)
        env.reset(options={"id": "q"})
        with pytest.raises(ToolFailure, match=why):
            env.step("x")
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step("on the dropped connection")
        env.reset(options={"id": "q"})
        assert env.step("x")[:4] == ("t", 1.0, True, False)
        env.close()


def test_an_episode_does_not_go_on_at_another_connection():
    opened = []

    async def handle(socket):
        opened.append(socket)
        await socket.recv()
        await socket.send(json.dumps(SEEN))  # and hangs up

    with answering(handle) as url:
        env = openenv(url=url)
        env.reset(options={"id": "q"})
        time.sleep(0.1)
        with pytest.raises(ToolFailure, match="closed the connection"):
            env.step("x")
        assert len(opened) == 1


def test_a_server_that_is_away_is_a_failure():
    env = openenv(url="http://127.0.0.1:9", timeout_s=2.0)
    with pytest.raises(ToolFailure, match="ConnectionRefused"):
        env.reset(options={"id": "q"})


def test_the_field_to_read_is_asked_for_where_it_is_not_plain():
    two = changed(observation={"a": "1", "b": "2"})
    with rude(two, two, SEEN) as url:
        with pytest.raises(EnvError, match=r"fields a, b, of which 2 are texts.*env.kwargs.observation"):
            openenv(url=url).reset(options={})
        assert openenv(url=url, observation="b").reset(options={})[0] == "2"
        with pytest.raises(EnvError, match="now 'b'"):
            openenv(url=url, observation="b").reset(options={})


def test_actions_are_filled_in():
    got = []

    async def handle(socket):
        async for message in socket:
            got.append(json.loads(message))
            await socket.send(json.dumps(SEEN))

    with answering(handle) as url:
        env = openenv(url=url, action={"code": "{action}", "language": "python"})
        env.reset(options={"seed": 7, "split": "s", "index": 2, "question": "not sent", "reset": {"level": 3}})
        env.step("x = 1")
        env.close()
    assert got[0] == {"type": "reset", "data": {"seed": 7, "split": "s", "index": 2, "level": 3}}
    assert got[1] == {"type": "step", "data": {"code": "x = 1", "language": "python"}}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"url": "127.0.0.1:8000"}, "url is"),
        ({"url": "ws://a/"}, "url is"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"action": {"a": "b"}}, "exactly one"),
        ({"stop_strings": "x"}, "stop_strings"),
        ({"headers": {"Authorization": "Bearer abc"}}, "written out"),
    ],
)
def test_arguments_are_checked(arguments, why):
    with pytest.raises(ValueError, match=why):
        openenv(**arguments)


@pytest.mark.slow
def test_the_command_serves_until_its_input_ends(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    command = [sys.executable, "-m", "agentrl", "env", "serve", "agentrl/Calculator-v0", "--port", "0"]
    command += ["--tasks", f"test={data}", "--set", "max_turns=1", "--follow-stdin"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("serving Calculator-v0 at http://127.0.0.1:")
        env = openenv(url=line.split()[3])
        assert "2+2?" in env.reset(options={"split": "test", "index": 1})[0]
        assert env.step("nothing")[1:4] == (0.0, False, True)
        process.stdin.close()
        assert process.wait(20) == -signal.SIGTERM  # uvicorn ends as the signal does that it was sent
