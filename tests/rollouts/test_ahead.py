"""Steps played ahead: in order, never further than allowed, and a checkpoint forgets what nobody has taken."""

import threading

import pytest

from agentrl.rollouts.ahead import Ahead


class Questions:
    """Hands out numbers; a step takes three."""

    def __init__(self):
        self.at = 0
        self.threads = set()
        self.go = threading.Event()
        self.go.set()

    def collect(self, n):
        self.threads.add(threading.current_thread().name)
        taken = list(range(self.at, self.at + 3))
        self.at += 3
        self.go.wait(10)
        return n, taken

    def position(self):
        return {"at": self.at}


def test_without_depth_nothing_is_ahead():
    q = Questions()
    ahead = Ahead(q.collect, q.position, depth=0, last=9)
    assert ahead.take(0) == (0, [0, 1, 2]) and ahead.position() == {"at": 3}
    assert q.threads == {threading.current_thread().name}
    assert ahead.run(lambda: 5) == 5
    ahead.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_steps_come_in_order_and_end_at_the_last(depth):
    q = Questions()
    ahead = Ahead(q.collect, q.position, depth=depth, last=4)
    got = [ahead.take(n) for n in range(4)]
    ahead.close()
    assert got == [(n, [3 * n, 3 * n + 1, 3 * n + 2]) for n in range(4)]
    assert q.at == 12  # no fifth step
    assert threading.current_thread().name not in q.threads


def test_a_checkpoint_sees_the_questions_of_taken_steps_only():
    q = Questions()
    ahead = Ahead(q.collect, q.position, depth=2, last=9)
    ahead.take(0)
    ahead.run(lambda: None)  # steps 1 and 2 are played now
    assert q.at == 9 and ahead.position() == {"at": 3}
    ahead.take(1)
    assert ahead.position() == {"at": 6}
    ahead.close()


def test_a_failure_reaches_who_takes_the_step():
    def collect(n):
        if n == 1:
            raise OSError("gone")
        return n

    ahead = Ahead(collect, dict, depth=1, last=5)
    assert ahead.take(0) == 0
    with pytest.raises(OSError, match="gone"):
        ahead.take(1)
    ahead.close()
