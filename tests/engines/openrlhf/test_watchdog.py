"""Who waits for whom: said after a while, again when it has doubled, never when it is over."""

from agentrl.engines.openrlhf.watchdog import Watchdog


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_wait_is_told_late_then_ever_more_rarely():
    clock, said = Clock(), []
    dog = Watchdog(said.append, 10.0, clock)
    with dog.wait("the loop", "a step", 100.0):
        told = []
        for clock.now in range(0, 100, 5):
            if dog.look():
                told.append(clock.now)
        assert told == [10, 20, 40, 80]
        assert dog.waits() == ["the loop for a step, 95 s of at most 100 s"]
    clock.now = 1000.0
    assert dog.look() == [] and dog.waits() == []
    assert said[0] == "waiting: the loop for a step, 10 s so far"


def test_equal_waits_are_one_line():
    clock = Clock()
    dog = Watchdog(lambda line: None, 10.0, clock)
    with dog.wait("an episode", "engine 0", 60.0), dog.wait("an episode", "engine 0", 60.0):
        clock.now = 12.0
        assert dog.look() == ["waiting: an episode (x2) for engine 0, 12 s so far"]


def test_a_wait_that_fails_is_forgotten():
    dog = Watchdog(lambda line: None, 10.0, Clock())
    try:
        with dog.wait("a", "b", 1.0):
            raise ValueError
    except ValueError:
        pass
    assert dog.waits() == []
