"""skyrl-gym's and GEM's shapes behind a pipe, without the packages: `tests/peers` has the real ones."""

import asyncio
import time

import gymnasium
import pytest

import agentrl.envs  # noqa: F401  (registers them)
from agentrl.envs.errors import ToolFailure
from agentrl.envs.others import hosts
from agentrl.envs.others.env import task_seed
from agentrl.errors import EnvError

THEIRS = "tests.envs.others.theirs"
TASK = {"id": "q", "question": "how many?", "golden_answers": ["4", "four"]}


def skyrl(**arguments):
    env = gymnasium.make(
        "agentrl/SkyRLGym-v0", disable_env_checker=True, **{"env": f"{THEIRS}:Skyrl", "timeout_s": 5.0, **arguments}
    )
    return env.unwrapped


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(hosts, "FIRST_PAUSE_S", 0.0)


def test_an_episode_with_rewards_metadata_and_metrics():
    env = skyrl(env_config={"topk": 2}, extras={"level": 5}, stop_strings=["</a>"])
    assert env.stop_strings == ("</a>",)
    prompt, info = env.reset(options=TASK)
    extras = info["metadata"]["extras"]
    assert prompt == "how many?" and extras["level"] == 5 and extras["reward_spec"]["ground_truth"] == "4"
    text, reward, terminated, truncated, info = env.step("a")
    assert (text, reward, terminated, truncated) == ("a 1", 0.25, False, False)
    assert info["observation_parts"] == {"open": "", "body": "a 1", "close": ""}
    env.step("\ud800 a surrogate, \x00 and ☃")
    *_, terminated, truncated, info = env.step("b")
    assert terminated and not truncated and info["metrics"] == {"turns": 3}
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("after the end")
    row = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "reward_spec": {"a": 1}}
    prompt, info = env.reset(options=row)
    assert prompt == "s\nu" and info["metadata"]["extras"]["reward_spec"] == {"a": 1}
    target = skyrl(ground_truth="target").reset(options=TASK)[1]["metadata"]["extras"]["reward_spec"]
    assert target["ground_truth"] == {"target": ["4", "four"]}


@pytest.mark.parametrize(
    "action, why",
    [
        ("none", "step.. returned None"),
        ("text", "must give messages"),
        ("reward", "the environment's reward is 'much'"),
        ("nan", "the environment's reward is nan"),
        ("exit", "SystemExit: 3"),
    ],
)
def test_what_is_wrongly_shaped_is_a_failure(action, why):
    env = skyrl()
    env.reset(options=TASK)
    with pytest.raises(ToolFailure, match=why):
        env.step(action)
    env.reset(options=TASK)
    assert env.step("a")[0] == "a 1"  # the process and the others go on


@pytest.mark.parametrize("how, why", [("no pair", "init.. returned .*2 values"), ("raise", "KeyError: 'level'")])
def test_a_reset_that_fails_is_a_failure(how, why):
    with pytest.raises(ToolFailure, match=why):
        skyrl().reset(options=TASK | {"how": how})


def test_a_late_answer_is_a_failure_and_blocks_nobody():
    late, other = skyrl(timeout_s=0.2), skyrl(timeout_s=0.2)

    async def play():
        await asyncio.gather(late.areset(options=TASK), other.areset(options=TASK))
        failing = asyncio.ensure_future(late.astep("late"))
        assert (await other.astep("a"))[0] == "a 1"
        with pytest.raises(ToolFailure, match=r"within 0.2 s"):
            await failing
        await late.areset(options=TASK)  # the next episode has another session
        return await late.astep("b")

    began = time.monotonic()
    assert asyncio.run(play())[0] == "b 1" and time.monotonic() - began < 5


def test_a_process_that_dies_fails_its_episodes_and_is_started_again():
    envs = [skyrl(extras={"own": "process"}) for _ in range(3)]

    async def play():
        await asyncio.gather(*(e.areset(options=TASK) for e in envs))
        return await asyncio.gather(
            envs[0].astep("die"), envs[1].astep("slow"), envs[2].astep("slow"), return_exceptions=True
        )

    for failure in asyncio.run(play()):
        assert isinstance(failure, ToolFailure) and "exit code 7: " in str(failure) and "cheese" in str(failure)
    envs[0].reset(options=TASK)
    assert envs[0].step("a")[0] == "a 1"


def test_a_dead_process_has_a_pause_before_the_next(monkeypatch):
    monkeypatch.setattr(hosts, "FIRST_PAUSE_S", 20.0)
    env = skyrl(extras={"own": "pause"})
    env.reset(options=TASK)
    with pytest.raises(ToolFailure):
        env.step("die")
    with pytest.raises(ToolFailure, match=r"(?s)exit code 7.*the next start is in (20|19)"):
        env.reset(options=TASK)


def test_the_pause_grows_while_it_cannot_be_started(monkeypatch):
    monkeypatch.setattr(hosts, "FIRST_PAUSE_S", 0.1)
    env = skyrl(extras={"own": "growing"})
    env.reset(options=TASK)
    with pytest.raises(ToolFailure):
        env.step("die")
    env._host._command[1] = "/nowhere.py"
    for _ in range(2):
        time.sleep(max(0.0, env._host._not_before - time.monotonic()))
        with pytest.raises(ToolFailure, match="exit code 2"):
            env.reset(options=TASK)
    assert env._host._not_before - time.monotonic() > 0.25  # 0.1 s, 0.2 s, 0.4 s


def test_many_episodes_wait_at_the_same_time():
    envs = [skyrl() for _ in range(32)]

    async def play(env):
        await env.areset(options=TASK)
        return [(await env.astep("slow"))[0] for _ in range(2)]

    async def everything():
        return await asyncio.gather(*map(play, envs))

    began = time.monotonic()
    assert asyncio.run(everything()) == [["slow 1", "slow 2"]] * 32
    assert time.monotonic() - began < 3  # one after the other: 12.8 s


@pytest.mark.parametrize(
    "arguments, why",
    [
        ({"env": "tests.envs.others.theirs:Nothing"}, "has no attribute 'Nothing'"),
        ({"env": "search"}, "No module named 'skyrl_gym'.*python: the interpreter"),
        ({"python": "/nowhere/python"}, "/nowhere/python cannot be run"),
    ],
)
def test_what_never_worked_is_a_mistake_and_no_failed_episode(arguments, why):
    with pytest.raises(EnvError, match=why):
        skyrl(**arguments).reset(options=TASK)


def test_arguments_are_checked():
    for arguments in ({"timeout_s": 0}, {"ground_truth": "all"}, {"stop_strings": "</a>"}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            skyrl(**arguments)


def test_gems_task_is_the_rows():
    env = gymnasium.make(
        "agentrl/Gem-v0", disable_env_checker=True, env=f"{THEIRS}:Gem", arguments={"limit": 3}
    ).unwrapped
    assert env.reset(seed=1, options={"seed": 7})[0] == "seed 7"
    text, info = env.reset(seed=1, options={"id": "a"})
    assert text == env.reset(seed=2, options={"id": "a"})[0] != env.reset(seed=1, options={"id": "b"})[0]
    assert info["metadata"] == {"limit": 3}
    assert env.step("x")[:4] == ("x", 1.0, True, False)
    env.reset()
    with pytest.raises(ToolFailure, match="5 values"):
        env.step("four")
    assert task_seed({}, 5) == 5 and task_seed({"seed": True, "id": 1}, 5) == task_seed({"id": "1"}, 9)


def test_in_rollouts_it_is_an_episode_that_is_counted():
    from agentrl.config import RolloutConfig
    from agentrl.rollouts.play import Failed, guarded

    env = skyrl()

    async def play():
        await guarded(env.areset(options=TASK), 5.0)
        with pytest.raises(Failed, match="ToolFailure"):
            await guarded(env.astep("none"), RolloutConfig().tool_timeout_s)

    asyncio.run(play())
