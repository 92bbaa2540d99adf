"""The vector environment against single environments, and against Gymnasium's own way of running them in turn."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import envs  # noqa: F401 (registers)
from agentrl.envs.errors import TaskError, ToolFailure
from agentrl.envs.search import SearchEnv
from agentrl.envs.vector import SearchVectorEnv
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.errors import RetrieverUnavailable
from tests.retriever.helpers import PASSAGES, Fake

INDEX = Bm25Index.from_passages(PASSAGES)
TASKS = [{"question": f"q{i}?", "golden_answers": [str(i)]} for i in range(6)]
ACTIONS = ["<search> Vesna </search>", "<search> glass </search>", "<answer> 3 </answer>", "hm", "<search> \ud800"]
turns = st.lists(st.tuples(*[st.sampled_from(ACTIONS)] * 3), min_size=1, max_size=9)


def bare(infos):
    """Infos as lists, without the time that searches took."""
    return {
        k: bare(v) if isinstance(v, dict) else list(v) for k, v in infos.items() if k not in ("latency_s", "_latency_s")
    }


def plain(row):
    observations, *arrays, infos = row
    return (observations, *(a.tolist() for a in arrays), bare(infos))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@given(turns=turns, seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_it_plays_as_gymnasium_plays_single_environments_in_turn(mode, turns, seed):
    arguments = {"retriever": INDEX, "tasks": TASKS, "max_turns": 2}
    ours = SearchVectorEnv(3, autoreset_mode=mode, **arguments)
    theirs = SyncVectorEnv([lambda: SearchEnv(**arguments)] * 3, autoreset_mode=mode)
    assert plain(ours.reset(seed=seed)) == plain(theirs.reset(seed=seed))
    for actions in turns:
        assert plain(ours.step(actions)) == plain(theirs.step(actions))


def test_next_step_autoreset_by_hand():
    vector = gymnasium.make_vec("agentrl/Search-v0", num_envs=2, retriever=INDEX, max_turns=1)
    first, second = SearchEnv(retriever=INDEX, max_turns=1), SearchEnv(retriever=INDEX, max_turns=1)
    own = [{"question": "Where?", "golden_answers": ["Torvik"]}, {"question": "Who?", "golden_answers": ["Edda"]}]
    observations, infos = vector.reset(seed=[4, 5], options={"tasks": own})
    assert observations == (first.reset(options=own[0])[0], second.reset(options=own[1])[0])
    assert infos["observation_parts"]["body"].tolist() == ["Where?", "Who?"]

    observations, rewards, terminated, truncated, infos = vector.step(["<answer> Torvik </answer>", ACTIONS[0]])
    assert observations == ("", second.step(ACTIONS[0])[0])
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([1.0, 0.0], [True, False], [False, False])
    assert infos["kind"].tolist() == ["answer", "search"] and infos["answer_span"].tolist() == [(9, 15), None]

    # the first begins anew, whatever its action; the second's last search is not executed, and truncates it
    observations, rewards, terminated, truncated, _ = vector.step(["<answer> Torvik </answer>", ACTIONS[0]])
    assert observations[0].endswith("What is the capital of Portugal?") and observations[1] == ""
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([0.0, 0.0], [False, False], [False, True])
    observations, rewards, *_ = vector.step(["<answer> lisbon </answer>", "ignored"])
    assert rewards.tolist() == [1.0, 0.0] and observations[1].endswith("What is the capital of Portugal?")


def test_make_vec_knows_it_and_its_spaces():
    vector = gymnasium.make_vec("agentrl/Search-v0", num_envs=3)
    assert isinstance(vector, SearchVectorEnv) and isinstance(vector, gymnasium.vector.VectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = vector.reset(seed=0)
    assert observations in vector.observation_space and vector.action_space.sample() in vector.action_space
    assert len(set(observations)) > 1  # seeds differ, so do the questions that are drawn
    vector.close()


def test_the_distinct_queries_of_a_step_are_one_call():
    fake = Fake()
    vector = SearchVectorEnv(5, retriever=fake, topk=2)
    vector.reset()
    a, b = "<search> a </search>", "<search> b </search>"
    observations, *_ = vector.step([b, a, "hm", b, "<answer> a </answer>"])
    assert fake.batches == [(["b", "a"], 2)]
    shown = [o.split("Title: T) ")[1].split("\n")[0] if "Doc 1" in o else "" for o in observations]
    assert shown == ["b", "a", "", "b", ""]
    vector.step(["hm"] * 5)
    assert len(fake.batches) == 1


def test_where_the_retriever_fails_no_episode_has_moved():
    fake = Fake()
    vector, single = (SearchVectorEnv(3, retriever=fake, max_turns=1) for _ in range(2))
    actions = ["<search> a </search>", "hm", "<answer> Lisbon </answer>"]
    for env in (vector, single):
        env.reset(seed=0)
    fake.error = RetrieverUnavailable("down")
    with pytest.raises(ToolFailure, match="down"):
        vector.step(actions)
    fake.error = None
    assert plain(vector.step(actions)) == plain(single.step(actions))


def test_without_autoreset_chosen_episodes_begin_anew():
    vector = SearchVectorEnv(3, retriever=INDEX, autoreset_mode="Disabled")
    vector.reset(seed=0)
    vector.step(["<answer> x </answer>", "hm", "<answer> x </answer>"])
    options = {"reset_mask": np.array([True, False, True])}
    observations, _ = vector.reset(options=options)
    assert "reset_mask" in options  # the caller's dictionary is left alone
    assert [o.endswith("Portugal?") for o in observations] == [True, False, True]
    _, _, terminated, _, _ = vector.step(["hm", "<answer> x </answer>", "hm"])
    assert terminated.tolist() == [False, True, False]


def test_what_is_refused():
    vector = SearchVectorEnv(2, retriever=INDEX)
    with pytest.raises(gymnasium.error.ResetNeeded):
        vector.step(["hm", "hm"])
    with pytest.raises(TaskError, match="holds 1 tasks; give one for each of the 2"):
        vector.reset(options={"tasks": TASKS[:1]})
    vector.reset()
    with pytest.raises(ValueError, match="1 actions for 2 episodes"):
        vector.step(["hm"])
    with pytest.raises(ValueError, match="num_envs is 0"):
        SearchVectorEnv(0)
    own = SearchVectorEnv(2)
    own.reset(options={"tasks": TASKS[:2]})
    with pytest.raises(ValueError, match="made without a retriever"):
        own.step([ACTIONS[0], "hm"])
