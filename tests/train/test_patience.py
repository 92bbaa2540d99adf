"""What counts as an outage, and what is played again, with a player that loses what the test says."""

from __future__ import annotations

import pytest

from agentrl.errors import OutageError
from agentrl.rollouts.play import CONTEXT, episodes_of
from agentrl.train import patience
from agentrl.train.patience import Patience, Stopped, is_outage
from agentrl.types import Task, Trajectory

TASKS = [Task(str(i), {"question": str(i)}) for i in range(4)]


class Scripted:
    """A player: `lost(call, sample_id)` is the error of an episode in the `call`th call, or None."""

    def __init__(self, lost):
        self.lost, self.calls = lost, []

    def replay(self, episodes):
        k = len(self.calls)
        self.calls.append([e.sample_id for e in episodes])
        return [trajectory(e, self.lost(k, e.sample_id)) for e in episodes]

    def collect(self, tasks, group_size, *, prefix=""):
        return self.replay(episodes_of(tasks, group_size, prefix))


def trajectory(episode, error):
    return Trajectory(
        sample_id=episode.sample_id, group_id=episode.group_id, env_id="e", policy_version=0, turns=(), reward=1.0,
        correct=True, terminated=True, truncated=False, error=error,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.001)


def found(errors, size=2):
    episodes = episodes_of([Task(str(i), {}) for i in range(len(errors) // size)], size)
    return [trajectory(e, error) for e, error in zip(episodes, errors, strict=True)]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([None] * 4, False),
        (["down", None, None, None], False),
        (["down", "down", None, None], False),  # a half is not most, and one group is whole
        (["down", None, "down", None], True),  # no group has two left
        (["down"] * 3 + [None], True),
        ([CONTEXT + "too long"] * 4, False),  # no tool is to blame
    ],
)
def test_an_outage_is_most_episodes_or_all_that_could_be_compared(errors, expected):
    assert is_outage(found(errors)) is expected


def test_single_responses_are_no_groups_without_contrast():
    assert not is_outage(found(["down", None, None, None], size=1))  # an evaluation with one response a question
    assert is_outage(found(["down", "down", "down", None], size=1))


def test_lost_episodes_are_played_again_until_no_fewer_are_lost():
    """The server comes back, and at first bears four at a time only; one episode fails each time by itself."""

    def lost(call, name):
        if call == 0:
            return "down"
        if name == "s/0-0":
            return "never ends"
        within = player.calls[call].index(name)
        return "busy" if within >= 5 else None

    said, alarms = [], []
    player = Scripted(lost)
    got = Patience(60, said.append, alarms.append).collect(player, TASKS, 4, prefix="s/", what="step 3")
    assert [t.sample_id for t in got if t.error] == ["s/0-0"]
    assert [t.sample_id for t in got] == player.calls[0]  # the order is kept
    assert [len(c) for c in player.calls] == [16, 2, 16, 12, 8, 4, 1]
    assert len(alarms) == 1 and "step 3: 16 of 16 episodes lost their tool (down)" in alarms[0]
    assert said[-1].startswith("step 3: the tool is back after") and "16 episodes were played again" in said[-1]


def test_what_always_fails_by_itself_is_not_waited_for():
    """Most episodes fail each time, and one that has used its tool comes through each time: the tool is there."""

    def with_a_turn(self, episodes):
        return [_used(t) if t.error is None else t for t in Scripted.replay(self, episodes)]

    class Player(Scripted):
        replay = with_a_turn

    player = Player(lambda call, name: None if name.startswith("0-") else "never ends")
    got = Patience(60).collect(player, TASKS, 2)
    assert sum(t.error is not None for t in got) == 6 and len(player.calls) <= 5


def _used(t):
    import dataclasses

    from agentrl.types import Turn

    turn = Turn(prompt_ids=[1], action_ids=[2], logprobs=[-1.0], action="a", observation="o", reward=0.0, stop="stop")
    return dataclasses.replace(t, turns=(turn, turn))


def test_without_patience_nothing_is_played_again():
    player = Scripted(lambda call, name: "down")
    assert all(t.error for t in Patience(0).collect(player, TASKS, 2)) and len(player.calls) == 1


def test_a_tool_that_stays_away_is_an_error_with_true_counts_and_a_stop_ends_the_wait():
    said = []
    with pytest.raises(OutageError, match=r"s: 8 of 8 episodes lost their tool \(down\).*outage_wait_s = 0.05 s"):
        Patience(0.05, said.append).collect(Scripted(lambda call, name: "down"), TASKS, 2, prefix="s")
    assert any("still away" in line for line in said)
    waiting = Patience(60)
    waiting.stopping.set()
    with pytest.raises(Stopped):
        waiting.collect(Scripted(lambda call, name: "down"), TASKS, 2)
