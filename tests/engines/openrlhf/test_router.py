"""Least loaded first, a conversation stays where its prefix is cached, the dead get nothing."""

from hypothesis import given
from hypothesis import strategies as st

from agentrl.engines.openrlhf.router import Router


def test_new_conversations_go_to_the_least_loaded():
    router = Router(3)
    assert [router.take(s) for s in (10, 11, 12, 13)] == [0, 1, 2, 0]
    router.give(1)
    assert router.take(14) == 1


def test_a_conversation_stays_even_where_others_are_idle():
    router = Router(2)
    assert router.take("a") == 0
    for s in "bcd":
        router.take(s)
    router.give(1)
    router.give(1)
    assert router.take("a") == 0 and router.load == [3, 0]
    router.release("a")
    assert router.take("a") == 1


def test_conversations_of_a_dead_engine_move_and_stay_where_they_moved():
    router = Router(2)
    assert router.take("a") == 0
    router.kill(0)
    assert router.take("a") == 1
    router.revive(0)
    assert router.take("a") == 1


def test_no_engine_is_alive():
    router = Router(1)
    router.kill(0)
    assert router.take("a") is None and router.load == [0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 4))
def test_loads_differ_by_at_most_the_conversations_that_came_back(sessions, engines):
    router = Router(engines)
    for s in dict.fromkeys(sessions):
        router.take(s)
    assert max(router.load) - min(router.load) <= 1
