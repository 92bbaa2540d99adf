"""Questions of several environments: drawn by weight, the same again, and by what the policy can do."""

from collections import Counter

import pytest

from agentrl.config import CurriculumConfig
from agentrl.data.mixture import MixedStream
from agentrl.data.tasks import TaskStream
from agentrl.errors import DataError
from agentrl.types import Task


def stream(weights=None, seed=3, **curriculum):
    weights = weights or {"search": 2.0, "math": 1.0}
    parts = {n: TaskStream([Task(f"{n}:{i}", {}, n) for i in range(5)], seed) for n in weights}
    return MixedStream(parts, weights, seed, CurriculumConfig(**curriculum))


def test_questions_come_by_weight_and_every_one_once_an_epoch():
    drawn = stream().take(3000)
    count = Counter(task.env for task in drawn)
    assert count["search"] == pytest.approx(2000, abs=4 * (3000 * 2 / 9) ** 0.5)  # four standard errors
    of_math = [task.id for task in drawn if task.env == "math"]
    assert all(len(set(of_math[i : i + 5])) == 5 for i in range(0, len(of_math) - 5, 5))
    assert Counter(task.env for task in stream({"a": 1.0, "b": 0.0}).take(50)) == {"a": 50}


def test_the_same_seed_draws_the_same_and_a_saved_position_goes_on():
    whole = stream(enabled=True)
    first, whole_state = whole.take(17), whole.state_dict()
    whole.learn({"math": 0.9})
    later = stream(enabled=True)
    later.load_state_dict(whole_state)
    later.learn({"math": 0.9})
    assert later.take(40) == whole.take(40)
    assert stream(enabled=True).take(17) == first != stream(seed=4).take(17)


def test_a_curriculum_prefers_what_is_half_solved_within_its_bounds():
    one = stream({"hard": 1.0, "half": 1.0, "easy": 1.0}, enabled=True, floor=0.25, memory=1)
    assert set(one.shares().values()) == {1 / 3}  # nothing is known yet
    one.learn({"hard": 0.0, "half": 0.5, "easy": 0.9})
    assert one.shares() == pytest.approx({"hard": 0.25 / 1.61, "half": 1 / 1.61, "easy": 0.36 / 1.61})
    slow = stream({"a": 1.0, "b": 1.0}, enabled=True, memory=10)
    slow.learn({"a": 0.0})
    slow.learn({"a": 1.0})
    assert slow.rates == pytest.approx({"a": 0.1})
    off = stream()
    off.learn({"math": 0.0})
    assert off.shares() == pytest.approx({"search": 2 / 3, "math": 1 / 3})


def test_a_position_in_other_environments_is_refused():
    with pytest.raises(DataError, match="saved position is in a, b, and env lists search, math"):
        stream().load_state_dict(stream({"a": 1.0, "b": 1.0}).state_dict())
    plain = TaskStream([Task("q", {})], 0)
    with pytest.raises(DataError, match="one environment, and env lists search, math"):
        stream().load_state_dict(plain.state_dict())
    with pytest.raises(DataError, match=r"several environments \(search, math\), and env is one"):
        plain.load_state_dict(stream().state_dict())
