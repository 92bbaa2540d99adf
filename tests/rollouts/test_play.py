import asyncio
import math
import os
import signal
import threading
import time

import httpx
import pytest

from agentrl.batch import pack
from agentrl.config import RolloutConfig
from agentrl.envs import grading
from agentrl.envs.errors import ToolFailure
from agentrl.envs.math import MathEnv
from agentrl.retriever.errors import RetrieverError
from agentrl.rollouts.chat import ChatFormat
from agentrl.rollouts.play import EnvPool, Player, session_of
from agentrl.types import Task
from tests.fakes import ScriptedSampler, tiny_tokenizer
from tests.rollouts.worlds import Awaitable, Blocking

TOKENIZER = tiny_tokenizer()
SAID = ["<search> one </search>", "<search> two </search>", "so <answer> Port Ellis </answer>"]
KINDS = [Blocking, Awaitable]


def setting(style="tag", **options):
    config = RolloutConfig(style=style, **({"max_context": 1000, "max_tokens_per_turn": 50} | options))
    return config, ChatFormat(TOKENIZER, config)


def one(env, options=None, sampler=None, style="tag", threshold=1.0, **config):
    config, chat = setting(style, **config)
    sampler = sampler or ScriptedSampler(TOKENIZER, SAID)
    task = Task("t", {"question": "who?", "reward": 1.0} | (options or {}))
    with EnvPool(lambda: env) as pool:
        player = Player(sampler, pool, chat, config, correct_threshold=threshold)
        t = pool.run(player.play(pool.take(), task, "g", "s"))
    return t, sampler


def many(make, tasks=3, group_size=2, sampler=None, options=None, prefix="", **kwargs):
    config, chat = setting(**(options or {}))
    if isinstance(tasks, int):
        tasks = [Task(str(i), {"question": f"who {i}?", "reward": float(i % 2)}) for i in range(tasks)]
    sampler = sampler or ScriptedSampler(TOKENIZER, SAID)
    with EnvPool(make) as pool:
        return Player(sampler, pool, chat, config, **kwargs).collect(tasks, group_size, prefix=prefix)


# ------------------------------------------------------------------------------------------------------ one episode


@pytest.mark.parametrize("env", KINDS)
@pytest.mark.parametrize("style", ["tag", "chat"])
def test_what_the_sampler_saw_is_what_is_recorded(env, style):
    t, sampler = one(env(), style=style)
    context = []
    for call, u in zip(sampler.calls, t.turns, strict=True):
        context += u.prompt_ids
        assert call["context"] == context
        context += u.action_ids
        assert u.logprobs == [-0.5] * len(u.action_ids)
    assert pack([t]).input_ids.tolist() == [context]
    assert [u.action for u in t.turns] == SAID
    assert TOKENIZER.decode(t.turns[0].action_ids) == SAID[0]
    assert "number 1</information>" in TOKENIZER.decode(t.turns[1].prompt_ids)


def test_the_record_of_an_episode():
    t, sampler = one(Blocking())
    assert (t.sample_id, t.group_id, t.env_id) == ("s", "g", "Blocking")
    assert (t.reward, t.correct, t.terminated, t.truncated, t.error) == (1.0, True, True, False, None)
    assert [u.info["kind"] for u in t.turns] == ["search", "search", "answer"]
    assert [u.reward for u in t.turns] == [0.0, 0.0, 1.0]
    assert [u.stop for u in t.turns] == ["stop"] * 3
    assert all(u.info["latency_s"] >= 0 and "observation_parts" not in u.info for u in t.turns)
    assert t.turns[0].observation == "\n\n<information>Doc 1(Title: who?) number 1</information>\n\n"
    assert t.turns[0].answer_span is None
    a, b = t.turns[2].answer_span
    assert TOKENIZER.decode(t.turns[2].action_ids[a:b]) == " Port Ellis"  # the token of " Port" holds the space too
    assert sampler.released == [session_of(0, "s")]


@pytest.mark.parametrize(
    ("reward", "threshold", "last_info", "correct"),
    [
        (1.0, 1.0, {}, True),
        (0.5, 1.0, {}, False),
        (0.5, 0.5, {}, True),
        (0.0, 1.0, {"correct": True}, True),
        (1.0, 1.0, {"correct": False}, False),
    ],
)
def test_correct_is_the_environments_word_or_the_threshold(reward, threshold, last_info, correct):
    t, _ = one(Blocking(), {"reward": reward, "last_info": last_info}, threshold=threshold)
    assert t.correct is correct


def test_stop_strings_come_from_the_config_or_the_environment():
    seen = []

    class Sampler(ScriptedSampler):
        async def sample(self, ids, *, stop=(), **kwargs):
            seen.append(stop)
            return await super().sample(ids, stop=stop, **kwargs)

    one(Blocking(turns=1), sampler=Sampler(TOKENIZER, SAID))
    one(Blocking(turns=1), sampler=Sampler(TOKENIZER, SAID), stop=["###"])
    assert seen == [("</search>", "</answer>"), ("###",)]


def test_policy_versions_are_of_each_turn_and_the_oldest():
    class Moving(ScriptedSampler):
        async def sample(self, ids, **kwargs):
            result = await super().sample(ids, **kwargs)
            self.policy_version += 1
            return result

    sampler = Moving(TOKENIZER, SAID)
    sampler.policy_version = 5
    t, _ = one(Blocking(), sampler=sampler)
    assert [u.policy_version for u in t.turns] == [5, 6, 7]
    assert t.policy_version == 5


def test_truncated_at_max_turns():
    t, _ = one(Blocking(turns=9), max_turns=2)
    assert (len(t.turns), t.terminated, t.truncated, t.error, t.reward) == (2, False, True, None, 0.0)


def test_truncated_where_the_context_has_no_room_for_another_action():
    whole, _ = one(Blocking(turns=9), max_turns=4)
    tokens = sum(len(u.prompt_ids) + len(u.action_ids) for u in whole.turns[:2])
    room = tokens + len(whole.turns[2].prompt_ids) + 50
    assert len(one(Blocking(turns=9), max_context=room)[0].turns) == 3
    t, _ = one(Blocking(turns=9), max_context=room - 1)
    assert (len(t.turns), t.truncated, t.error) == (2, True, None)


def test_a_question_that_does_not_fit_is_a_failed_rollout():
    t, sampler = one(Blocking(), {"question": "long " * 500}, max_context=300)
    assert t.error.startswith("context: the prompt has")
    assert "rollout.max_context is 300" in t.error
    assert (t.turns, sampler.calls, sampler.released) == ((), [], [session_of(0, "s")])


def test_an_action_cut_by_its_length_goes_on():
    t, _ = one(Blocking(turns=2), max_tokens_per_turn=3)
    assert [(len(u.action_ids), u.stop) for u in t.turns] == [(3, "length")] * 2


# --------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("env", KINDS)
@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (ToolFailure("index is gone"), "ToolFailure: index is gone"),
        (RetrieverError("down"), "RetrieverError: down"),
        (httpx.ReadTimeout("late"), "ReadTimeout: late"),
        (ConnectionResetError("reset"), "ConnectionResetError: reset"),
        (TimeoutError("own deadline"), "TimeoutError: own deadline"),
    ],
)
def test_a_failing_tool_is_data(env, failure, text):
    t, sampler = one(env(), {"fail": failure})
    assert t.error == text
    assert math.isnan(t.reward)
    assert (t.correct, t.terminated, t.truncated) == (False, False, False)
    assert [u.action for u in t.turns] == SAID[:2]
    assert t.turns[1].info["error"] == text
    assert math.isnan(t.turns[1].reward)
    assert sampler.released == [session_of(0, "s")]
    with pytest.raises(ValueError, match="failed rollouts are kept out of the loss"):
        pack([t])


def test_a_call_that_is_cancelled_from_inside_is_data():
    """A client that loses its connection cancels its calls; a task group forgets tasks that end so."""
    tasks = [Task(str(i), {"question": "?", "reward": 1.0}) for i in range(4)]
    tasks[1] = Task("1", {"question": "?", "fail": asyncio.CancelledError()})
    got = many(Awaitable, tasks, group_size=1, options={"concurrency": 1})
    wanted = "CancelledError: the environment's call was cancelled from inside"
    assert [t.error for t in got] == [None, wanted, None, None]
    assert [t.reward for t in got if t.error is None] == [1.0, 1.0, 1.0]


def test_an_episode_that_ends_without_a_result_is_a_bug_and_not_left_out():
    class Cancelled(ScriptedSampler):
        async def sample(self, *args, **kwargs):
            raise asyncio.CancelledError

    with pytest.raises(AssertionError, match="2 of 2 episodes ended without a result"):
        many(Awaitable, tasks=1, group_size=2, sampler=Cancelled(TOKENIZER, SAID))


@pytest.mark.parametrize("env", KINDS)
def test_a_failing_reset_is_data(env):
    t, _ = one(env(), {"fail_reset": ToolFailure("no index")})
    assert (t.error, t.turns) == ("ToolFailure: no index", ())


@pytest.mark.parametrize("env", KINDS)
def test_a_tool_that_is_too_slow_is_data(env):
    start = time.perf_counter()
    t, _ = one(env(), {"slow_s": 15}, tool_timeout_s=0.1)
    assert time.perf_counter() - start < 10
    assert t.error == "timeout: the environment took longer than rollout.tool_timeout_s = 0.1 s"
    assert t.turns[1].info["latency_s"] >= 0.1


def test_an_astep_that_blocks_the_loop_past_the_deadline_is_data():
    class Blocks(Awaitable):
        async def astep(self, action):
            time.sleep(0.2)
            return await super().astep(action)

    t, _ = one(Blocks(), {}, tool_timeout_s=0.1)
    assert t.error.startswith("timeout: ") and "let its astep await" in t.error


def test_a_sum_of_tenths_reaches_a_threshold_of_one():
    """Ten times 0.1 is 0.9999999999999999, which was "wrong, reward 1"."""
    t, _ = one(Blocking(), {"reward": sum([0.1] * 10)})
    assert t.reward < 1.0 and t.correct
    assert not one(Blocking(), {"reward": 0.999})[0].correct


class SaysEach(ScriptedSampler):
    """Answers question i with text i; which question it is stands in the context, as its number."""

    def __init__(self, said):
        super().__init__(TOKENIZER, said)
        self.said = said

    async def sample(self, ids, **kwargs):
        number = int(TOKENIZER.decode(list(ids)).rsplit("number ", 1)[1].split()[0])
        return await ScriptedSampler(TOKENIZER, [self.said[number]]).sample(ids, **kwargs)


@pytest.mark.slow
def test_slow_answers_are_wrong_and_cost_no_other_response_its_grade():
    """Half of the responses cannot be computed: the workers need far longer for all than the limit of one step.

    Waiting for a worker counts against nobody; each slow answer differs, so that none is a repetition.
    """
    slow = [rf"\boxed{{\binom{{10^9-1}}{{{10**8 + i}}}}}" for i in range(4)]
    right = [rf"\boxed{{x + {i} + 1 + a}}" for i in range(4)]
    said = [text for pair in zip(slow, right) for text in pair]
    tasks = [
        Task(str(i), {"question": f"number {i} ?", "golden_answers": [f"a + {i // 2} + x + 1"]})
        for i in range(len(said))
    ]
    options = {"tool_timeout_s": 1.0, "max_context": 4000, "max_tokens_per_turn": 200}
    grading._pool()  # its start is no part of what is measured
    began = time.perf_counter()
    played = many(lambda: MathEnv(deadline_s=2.0), tasks, 1, SaysEach(said), options)
    assert time.perf_counter() - began > 1.0  # so the limit of a step would have failed most of them
    assert [t.error for t in played] == [None] * len(said)
    assert [t.turns[0].info["graded_by"] for t in played] == ["deadline", "math-verify"] * (len(said) // 2)
    assert [t.correct for t in played] == [False, True] * (len(said) // 2)


@pytest.mark.parametrize("env", KINDS)
@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_a_failed_rollout(env, reward):
    t, _ = one(env(), {"reward": reward})
    assert t.error.startswith("reward: Blocking returned" if env is Blocking else "reward: Awaitable returned")


@pytest.mark.parametrize("env", KINDS)
@pytest.mark.parametrize("bug", [KeyError("bug"), ZeroDivisionError("bug"), RuntimeError("bug")])
def test_a_bug_propagates_as_it_is(env, bug):
    with pytest.raises(type(bug), match="bug"):
        one(env(), {"fail": bug})
    with pytest.raises(type(bug), match="bug"):
        many(env, [Task("t", {"question": "?", "fail": bug}), Task("u", {"question": "?"})])


def test_an_environment_that_does_not_speak_text_is_named():
    class Numbers(Blocking):
        def reset(self, **kwargs):
            return 7, {}

    with pytest.raises(TypeError, match=r"Numbers returned an observation of type int"):
        one(Numbers())


def test_an_engine_that_samples_nothing_is_a_bug():
    with pytest.raises(AssertionError, match="returned 0 tokens"):
        one(Blocking(), sampler=ScriptedSampler(TOKENIZER, [""]))


def test_one_failure_does_not_stop_the_others():
    tasks = [Task(str(i), {"question": "?", "reward": 1.0}) for i in range(4)]
    tasks[1] = Task("1", {"question": "?", "fail": ToolFailure("down")})
    got = many(Awaitable, tasks, group_size=1)
    assert [t.error for t in got] == [None, "ToolFailure: down", None, None]


# ----------------------------------------------------------------------------------------------------- many at once


@pytest.mark.parametrize("env", KINDS)
def test_order_and_ids(env):
    got = many(env, tasks=3, group_size=2, prefix="12/")
    assert [t.sample_id for t in got] == ["12/0-0", "12/0-1", "12/1-0", "12/1-1", "12/2-0", "12/2-1"]
    assert [t.group_id for t in got] == ["12/0", "12/0", "12/1", "12/1", "12/2", "12/2"]
    assert [t.reward for t in got] == [0, 0, 1, 1, 0, 0]


def test_order_is_kept_whatever_finishes_first():
    tasks = [Task(str(i), {"question": "?", "slow_s": 0.06 - 0.02 * i}) for i in range(3)]
    assert [t.group_id for t in many(Awaitable, tasks, group_size=1)] == ["0", "1", "2"]


def test_a_task_that_occurs_again_is_a_group_of_its_own():
    task = Task("t", {"question": "?"})
    got = many(Awaitable, [task, task, task], group_size=2)
    assert [t.group_id for t in got] == ["t", "t", "t/2", "t/2", "t/3", "t/3"]
    assert len({t.sample_id for t in got}) == 6


def test_sessions_follow_from_seed_and_sample():
    def sessions(**kwargs):
        sampler = ScriptedSampler(TOKENIZER, SAID)
        many(Awaitable, sampler=sampler, **kwargs)
        assert sorted(sampler.released) == sorted({c["session"] for c in sampler.calls})
        return [c["session"] for c in sampler.calls]

    first = sessions(prefix="1/")
    assert sessions(prefix="1/") == first
    assert len(set(first)) == 6
    assert not set(first) & set(sessions(prefix="2/"))
    assert not set(first) & set(sessions(prefix="1/", seed=1))


def test_temperature_of_the_call_or_the_config():
    for temperature, expected in ((None, 0.7), (0.0, 0.0)):
        sampler = ScriptedSampler(TOKENIZER, SAID)
        many(Awaitable, sampler=sampler, options={"temperature": 0.7}, temperature=temperature)
        assert {c["temperature"] for c in sampler.calls} == {expected}


@pytest.mark.parametrize("env", KINDS)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_bounds_the_episodes_in_flight(env, concurrency):
    live, most = set(), 0

    class Counting(ScriptedSampler):
        async def sample(self, ids, *, session, **kwargs):
            nonlocal most
            live.add(session)
            most = max(most, len(live))
            await asyncio.sleep(0.001)
            return await super().sample(ids, session=session, **kwargs)

        def release(self, session):
            live.discard(session)
            super().release(session)

    made = []

    def make():
        made.append(env())
        return made[-1]

    many(make, tasks=5, sampler=Counting(TOKENIZER, SAID), concurrency=concurrency)
    assert (most, len(made)) == (concurrency, concurrency)


@pytest.mark.parametrize("env", KINDS)
def test_a_slow_tool_holds_up_nobody_else(env):
    """The slow tool returns only after all other episodes have ended."""
    others_ended = threading.Event()

    class Waiting(Blocking):
        def step(self, action):
            assert self.task["question"] != "slow" or others_ended.wait(20)
            return super().step(action)

    class WaitingOnTheLoop(Awaitable):
        async def astep(self, action):
            for _ in range(2000 if self.task["question"] == "slow" else 0):
                if others_ended.is_set():
                    break
                await asyncio.sleep(0.01)
            return await super().astep(action)

    class Watching(ScriptedSampler):
        def release(self, session):
            super().release(session)
            if len(self.released) == 5:
                others_ended.set()

    tasks = [Task(str(i), {"question": "slow" if i == 0 else "?"}) for i in range(6)]
    kind = Waiting if env is Blocking else WaitingOnTheLoop
    got = many(kind, tasks, group_size=1, sampler=Watching(TOKENIZER, SAID))
    assert others_ended.is_set()
    assert [len(t.turns) for t in got] == [3] * 6


def test_collect_inside_a_running_loop_has_an_async_form():
    async def main():
        config, chat = setting()
        pool = EnvPool(Awaitable)
        player = Player(ScriptedSampler(TOKENIZER, SAID), pool, chat, config)
        return await player.play_groups([Task("t", {"question": "?"})], 2)

    assert len(asyncio.run(main())) == 2


@pytest.mark.parametrize("env", KINDS)
def test_ctrl_c_ends_at_once_and_leaves_nothing_behind(env):
    config, chat = setting()
    sampler = ScriptedSampler(TOKENIZER, SAID)
    slow = [Task(str(i), {"question": "?", "slow_s": 20.0}) for i in range(4)]
    with EnvPool(env) as pool:
        player = Player(sampler, pool, chat, config)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            player.collect(slow, 1)
        assert time.perf_counter() - start < 10
        assert len(sampler.released) == 4
        assert not asyncio.all_tasks(pool.loop)
        again = player.collect([Task("t", {"question": "?", "reward": 1.0})], 1)
        assert again[0].reward == 1.0
