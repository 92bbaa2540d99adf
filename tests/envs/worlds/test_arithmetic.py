"""The made-up mathematics task: levels, splits, solutions, the environment that grades it."""

import hashlib
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.envs.math import MathEnv
from agentrl.envs.worlds.arithmetic import DIGITS, LARGEST, LEVELS, ArithmeticWorld, Errors, apply, perfect

PERFECT = perfect(Errors())


def solve(question):
    """The answer to a question of any level, worked out another way than the world's own."""
    if "find x" in question:
        b, c, total = map(int, re.fullmatch(r"x \+ (\d+) - (\d+) = (\d+) , find x \?", question).groups())
        return next(x for x in range(LARGEST + 1) if x + b - c == total)
    if "boxes" in question:
        a, b, c = map(int, re.findall(r"\d+", question))
        return a * b + c
    if "gives away" in question:
        a, b, c = map(int, re.findall(r"\d+", question))
        return a + b - c
    return eval(question.removesuffix(" = ?"))


@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_right_and_every_step_stays_within_the_values(level):
    world = ArithmeticWorld(0, levels=[level], size=300)
    rows = world.questions("train") + world.questions("test")
    assert {q["level"] for q in rows} == {level} and len(rows) > 100
    for q in rows:
        assert q["golden_answers"] == [str(solve(q["question"]))]
        steps = world._steps[q["question"]]
        assert q["steps"] == len(steps)
        for a, op, b, value in steps:
            assert 0 <= value <= LARGEST and apply(a, op, b) == value and b < max(DIGITS, LARGEST)


def test_levels_are_mixed_and_splits_disjoint():
    world = ArithmeticWorld(1, levels=(1, 2, 3, 4), size=800)
    train, test = world.questions("train"), world.questions("test")
    assert not {q["question"] for q in train} & {q["question"] for q in test}
    assert len(train) == 3 * len(test) == 600
    assert {q["level"] for q in train} == {q["level"] for q in test} == {1, 2, 3, 4}
    assert len({q["id"] for q in train + test}) == 800


def test_the_seed_determines_everything():
    def digest(seed):
        world, rng = ArithmeticWorld(seed, levels=(1, 2, 3, 4), size=200), random.Random(0)
        made = [world.questions("train"), world.questions("test"), world.practice(rng)]
        made += [world.demonstration(q, rng) for q in world.questions("train")[:20]]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()

    assert digest(3) == digest(3) != digest(4)


@given(st.lists(st.integers(-3, 9), max_size=3))
@settings(max_examples=40, deadline=None)
def test_levels_that_do_not_exist_are_refused(levels):
    if levels and set(levels) <= set(LEVELS):
        assert ArithmeticWorld(0, levels=levels, size=20).levels == tuple(levels)
    else:
        with pytest.raises(ValueError, match=r"each must be one of \[1, 2, 3, 4\]"):
            ArithmeticWorld(0, levels=levels)


def test_a_level_that_has_fewer_questions_gives_what_it_has():
    world = ArithmeticWorld(0, levels=[3], size=100_000)
    made = {q["question"] for split in ("train", "test") for q in world.questions(split)}
    numbers = range(1, DIGITS)
    every = {
        f"x + {b} - {c} = {x + b - c} , find x ?"
        for x in range(1, LARGEST)
        for b in numbers
        for c in numbers
        if max(x + b, x + b - c) <= LARGEST and x + b - c >= 0
    }
    assert made <= every and len(made) > 0.99 * len(every)


@pytest.mark.parametrize("level", LEVELS)
def test_perfect_demonstrations_are_correct_in_the_real_environment(level):
    world, rng = ArithmeticWorld(5, levels=[level], size=100), random.Random(0)
    env = MathEnv(**world.env_kwargs)
    for q in world.questions("train")[:40]:
        [(prompt, said), (action, wrote)] = world.demonstration(q, rng, PERFECT)
        assert (said, wrote) == (False, True) and env.reset(options=q)[0] == prompt
        assert env.step(action)[1] == 1.0


def test_demonstrations_are_imperfect():
    world, rng = ArithmeticWorld(6, levels=(1, 2), size=400), random.Random(0)
    env, earned = MathEnv(**world.env_kwargs), []
    for q in world.questions("train"):
        env.reset(options=q)
        earned.append(env.step(world.demonstration(q, rng)[1][0])[1])
    assert 0.2 < sum(earned) / len(earned) < 0.8


def test_practice_is_the_table():
    world, rng = ArithmeticWorld(7), random.Random(0)
    for _ in range(30):
        segments = world.practice(rng)
        tasks = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+) ;", " ".join(text for text, _ in segments))
        assert len(tasks) == 12
        assert all(apply(int(a), op, int(b)) == int(value) for a, op, b, value in tasks)
        assert {text for text, wrote in segments if wrote} == {value for *_, value in tasks}


def test_every_word_is_known_to_the_tokenizer():
    world, rng = ArithmeticWorld(8, levels=(1, 2, 3, 4), size=300), random.Random(0)
    tokenizer = world.tokenizer()
    for q in world.questions("train")[:60]:
        for text, _ in world.demonstration(q, rng):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert ids == world.encode(text) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(tokenizer.encode("\\boxed{ 42 }", add_special_tokens=False)) == "\\boxed{ 42 }"
