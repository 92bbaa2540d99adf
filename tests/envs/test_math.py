"""The one-turn mathematics environment; graders are real worker processes."""

import asyncio

import gymnasium
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrl.envs.errors import TaskError
from agentrl.envs.math import PROMPT, MathEnv

TASK = {"id": "m", "question": "What is 7 * 6?", "golden_answers": ["42"]}


def solved(action, task=TASK, **arguments):
    env = MathEnv(**arguments)
    env.reset(options=task)
    return env.step(action)


def test_the_prompt_is_the_template_with_the_problem_as_its_body():
    observation, info = MathEnv().reset(options=TASK)
    assert observation == PROMPT.format(question="What is 7 * 6?") == "".join(info["observation_parts"].values())
    assert "\\boxed{}." in observation
    assert info["observation_parts"]["body"] == "What is 7 * 6?"
    assert MathEnv(prompt_template="Q {{x}} {question}").reset(options=TASK)[0] == "Q {x} What is 7 * 6?"


@pytest.mark.parametrize(
    ("action", "reward", "kind", "graded_by"),
    [
        (r"6 * 7 = \boxed{42}", 1.0, "answer", "string"),
        (r"\boxed{41} no, \boxed{ 042 }", 1.0, "answer", "number"),
        (r"\boxed{42} no, \boxed{41}", 0.0, "answer", "number"),
        (r"\boxed{\frac{84}{2}}", 1.0, "answer", "number"),
        (r"\boxed{6 \cdot 7}", 1.0, "answer", "math-verify"),
        (r"\boxed 42", 1.0, "answer", "string"),
        (r"\fbox{42}", 1.0, "answer", "string"),
        (r"\boxed{42} or \boxed{4", 0.0, "invalid", "none"),
        ("it is 42", 0.0, "invalid", "none"),
        (r"\boxed{42", 0.0, "invalid", "none"),
        (r"\boxed{}", 0.0, "invalid", "none"),
        (r"\boxed{42} then \boxed{ }", 0.0, "invalid", "none"),
        (r"\boxed{\boxed{42}}", 1.0, "answer", "string"),
        (r"\boxed{42}}}", 1.0, "answer", "string"),
        (r"{{\boxed{42}", 1.0, "answer", "string"),
    ],
)
def test_the_last_box_is_graded(action, reward, kind, graded_by):
    observation, got, terminated, truncated, info = solved(action)
    assert (observation, got, terminated, truncated) == ("", reward, True, False)
    assert (info["kind"], info["graded_by"], info["correct"]) == (kind, graded_by, reward == 1.0)
    if kind == "answer":
        assert action[slice(*info["answer_span"])].strip() == info["answer"]


@pytest.mark.parametrize(
    ("action", "reward"), [(r"\boxed{42}", 2.5), (r"\boxed{1}", 0.5), ("42", 0.0), (r"\boxed{ }", 0.0)]
)
def test_rewards_for_correctness_and_for_form(action, reward):
    assert solved(action, correct_reward=2.0, format_reward=0.5)[1] == reward


def test_any_golden_answer_counts_and_their_order_does_not():
    for golden in (["1", "42"], ["42", "1"], "42"):
        assert solved(r"\boxed{42}", {**TASK, "golden_answers": golden})[1] == 1.0


@given(st.text(max_size=80))
@example("\\boxed{\ud800}")
@example("\\boxed{\x00\u202e}")
@example("\\boxed{" * 30_000)
@example("\\boxed{" + "\\frac{" * 20_000 + "}" * 20_001)
@settings(max_examples=30, deadline=None)
def test_any_text_is_graded(action):
    _, reward, terminated, truncated, info = solved(action)
    assert (reward, terminated, truncated, info["correct"]) == (0.0, True, False, False)


def test_a_hundred_kilobytes_of_latex_are_wrong_at_once():
    info = solved("\\boxed{" + "\\frac{1}{2}" * 10_000 + "}")[4]
    assert (info["correct"], info["graded_by"]) == (False, "too long")


@pytest.mark.slow
def test_an_answer_that_cannot_be_computed_holds_up_neither_the_loop_nor_the_next_answer():
    hard = r"\boxed{\binom{10^9-1}{10^8}}"

    async def both():
        slow, quick = MathEnv(deadline_s=2.0), MathEnv()
        await slow.areset(options={**TASK, "golden_answers": ["x"]})
        await quick.areset(options=TASK)
        waiting = asyncio.create_task(slow.astep(hard))
        await asyncio.sleep(0)
        row = await quick.astep(r"\boxed{42}")
        assert not waiting.done()
        return row, await waiting

    quick, slow = asyncio.run(both())
    assert quick[1] == 1.0
    assert (slow[1], slow[4]["correct"]) == (0.0, False)


def test_a_task_states_the_tolerance_of_its_numbers():
    task = {**TASK, "golden_answers": ["3.5"]}
    assert solved(r"\boxed{3.55}", task)[1] == 0.0
    assert solved(r"\boxed{3.55}", {**task, "tolerance": 0.1})[1] == 1.0
    assert solved(r"\boxed{3.7}", {**task, "tolerance": "1e-1"})[1] == 0.0
    for wrong in (0, -1, "much", float("nan"), True):
        with pytest.raises(TaskError, match="tolerance"):
            MathEnv().reset(options={**task, "tolerance": wrong})


def test_steps_outside_an_episode_and_options_that_are_no_task():
    env = MathEnv()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(r"\boxed{42}")
    env.reset(options=TASK)
    env.step("42")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(r"\boxed{42}")
    for task in ({"question": ""}, {"question": "q", "golden_answers": [""]}, {"golden_answers": ["1"]}):
        with pytest.raises(TaskError):
            env.reset(options=task)
    with pytest.raises(ValueError, match=r"no \{question\}"):
        MathEnv(prompt_template="hi")


def test_tasks_are_drawn_with_the_seed_and_rendered_is_what_was_said():
    tasks = [{"question": f"q{i}", "golden_answers": [str(i)]} for i in range(40)]
    drawn = [MathEnv(tasks=tasks).reset(seed=s)[0] for s in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    env = MathEnv(render_mode="ansi")
    prompt, _ = env.reset(options=TASK)
    env.step("so 42")
    assert env.render() == prompt + "so 42"


def test_gymnasiums_own_vector_environments_play_it():
    tasks = [{"question": f"q{i}", "golden_answers": [str(i)]} for i in range(9)]
    vector = gymnasium.make_vec("agentrl/Math-v0", num_envs=3, vectorization_mode="sync", tasks=tasks)
    observations, _ = vector.reset(seed=4)
    asked = [int(text.rsplit("q", 1)[1]) for text in observations]
    actions = [f"\\boxed{{{n}}}" for n in (asked[0], asked[1] + 1, asked[2])]
    _, rewards, terminated, truncated, infos = vector.step(actions)
    assert rewards.tolist() == [1.0, 0.0, 1.0] and terminated.all() and not truncated.any()
    assert infos["correct"].tolist() == [True, False, True]
    vector.close()
