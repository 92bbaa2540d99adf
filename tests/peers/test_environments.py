"""Other people's environments as ours and ours in their packages, with the real skyrl-gym and GEM.

`make test-peers` runs this with each package in an environment of its own, beside agentrl's base.
"""

import asyncio
from importlib.util import find_spec

import gymnasium
import pytest

import agentrl.envs  # noqa: F401  (registers them)
from agentrl.envs.errors import ToolFailure
from agentrl.envs.others.env import HostedEnv
from agentrl.errors import EnvError
from tests.peers.served import search_server

TASK = {"id": "q1", "question": "When was Brightkiln founded?", "golden_answers": ["1921"]}
SUM = {"id": "s", "question": "17*23+5?", "golden_answers": ["396"]}


@pytest.fixture(scope="module")
def url():
    if not any(find_spec(peer) for peer in ("skyrl_gym", "gem")):
        pytest.skip("neither skyrl-gym nor gem-llm is here: `make test-peers` installs each into an environment")
    with search_server() as found:
        yield found


def made(name, **arguments):
    env = gymnasium.make(name, disable_env_checker=True, **arguments).unwrapped
    assert isinstance(env, HostedEnv)
    return env


# ------------------------------------------------------------------------------------------------ skyrl-gym


def test_skyrl_gyms_search_environment_as_ours(url):
    pytest.importorskip("skyrl_gym")
    config = {"search_url": f"{url}/retrieve", "topk": 1, "timeout": 5, "log_requests": False}
    env = made("agentrl/SkyRLGym-v0", env="search", env_config=config, extras={"max_turns": 3}, ground_truth="target")
    prompt, info = env.reset(options=TASK)
    assert prompt == TASK["question"] and info["observation_parts"]["body"] == prompt
    seen, reward, terminated, truncated, info = env.step("<search>Brightkiln</search>")
    assert "founded in 1921" in seen and (reward, terminated, truncated) == (0.0, False, False)
    assert info["observation_parts"]["body"] == seen and info["metadata"]["tool_name"] == "search"
    assert env.step("<answer>1921</answer>")[1:3] == (1.0, True)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("again")
    env.reset(options=TASK)
    assert env.step("<answer>1922</answer>")[1:3] == (0.0, True)


def test_skyrl_gyms_turns_rewards_and_metrics_cross():
    pytest.importorskip("skyrl_gym")
    env = made("agentrl/SkyRLGym-v0", env="gsm8k_multi_turn", extras={"max_turns": 2})
    rows = [{"question": "2+2?", "golden_answers": ["4"]}, {"prompt": [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2+2?"}], "reward_spec": {"ground_truth": "4"}}]  # fmt: skip
    for row, prompt in zip(rows, ("2+2?", "Be brief.\n2+2?"), strict=True):
        assert env.reset(options=row)[0] == prompt
        assert env.step("#### 5")[1:4] == (0.1, False, False)  # their reward for the format alone
        *_, info = env.step("#### 4")
        assert info["metrics"] == {"steps": 2}


def test_skyrl_gyms_failure_is_a_failed_episode():
    pytest.importorskip("skyrl_gym")
    env = made("agentrl/SkyRLGym-v0", env="gsm8k_multi_turn")  # no extra_info: a KeyError of theirs
    with pytest.raises(ToolFailure, match="KeyError: 'extra_info'"):
        env.reset(options=TASK)
    with pytest.raises(EnvError, match=r"knows no environment 'gsm9k'.*gsm8k"):
        made("agentrl/SkyRLGym-v0", env="gsm9k").reset(options=TASK)


def test_our_search_in_skyrl_gym(url):
    skyrl_gym = pytest.importorskip("skyrl_gym")
    arguments = {"retriever": url, "topk": 1, "max_turns": 2}
    skyrl_gym.register(
        id="agentrl_search",
        entry_point="agentrl.integrations.skyrl_gym:Environment",
        kwargs={"env": "agentrl/Search-v0", "arguments": arguments},
    )
    extras = {"reward_spec": {"method": "rule", "ground_truth": {"target": ["1921"]}}}
    env = skyrl_gym.make("agentrl_search", env_config={}, extras=extras)
    messages, _ = env.init([{"role": "system", "content": "s"}, {"role": "user", "content": TASK["question"]}])
    assert [m["role"] for m in messages] == ["system", "user"] and TASK["question"] in messages[1]["content"]
    assert env.stop_strings == ("</search>", "</answer>")
    out = env.step("<search> Brightkiln </search>")
    assert "1921" in out["observations"][0]["content"] and not out["done"] and out["reward"] == 0.0
    out = env.step("<answer> 1921 </answer>")
    assert out["done"] and out["reward"] == 1.0 and out["observations"] == []
    from skyrl_gym.metrics import aggregate_for_environment

    metrics = env.get_metrics()
    assert metrics == {"turns": 2, "reward": 1.0, "correct": 1.0, "valid_action_ratio": 1.0}
    assert aggregate_for_environment("agentrl_search", [metrics, metrics])["correct"] == 1.0
    env.close()


# ------------------------------------------------------------------------------------------------------ GEM


def test_gems_game_as_ours():
    pytest.importorskip("gem")
    envs = [made("agentrl/Gem-v0", env="game:GuessTheNumber-v0-easy") for _ in range(8)]

    async def play(env, seed):
        await env.areset(seed=seed, options={"id": "task"})  # a seed of its own each, as rollouts give
        return [await env.astep(f"\\boxed{{{n}}}") for n in (2, 9)]

    async def everything():
        return await asyncio.gather(*(play(e, s) for s, e in enumerate(envs)))

    played = asyncio.run(everything())
    assert all(p == played[0] for p in played), "a group must play one task"
    text, *_, info = played[0][0]
    assert text.startswith("At turn 1, you guessed 2") and info["metadata"]["suffix"]
    env = envs[0]
    ends = set()
    for seed in range(12):  # the number itself is found for some of the seeds
        env.reset(options={"seed": seed})
        ends.add(env.step("\\boxed{7}")[1:4])
    assert {(0.0, False, False), (1.0, True, False)} <= ends


def test_our_calculator_in_gem():
    gem = pytest.importorskip("gem")
    gem.register("agentrl:Calculator", "agentrl.integrations.gem:Environment", env="agentrl/Calculator-v0", tasks=[SUM])
    env = gem.make("agentrl:Calculator")
    observation, _ = env.reset(seed=3)
    assert SUM["question"] in observation
    text, reward, terminated, truncated, info = env.step("<calc> 17*23+5 </calc>")
    assert "396" in text and (reward, terminated, truncated) == (0.0, False, False) and info["valid"]
    assert env.spawn().reset()[0] == observation and "<" in env.sample_random_action()
    assert env.step("<answer> 396 </answer>")[1:4] == (1.0, True, False)
    vector = gem.make_vec(["agentrl:Calculator"] * 2, seed=1)
    assert len(vector.reset()[0]) == 2
