"""Waiting for a tool that is away, and playing the episodes that it has lost again.

Failed episodes are data, and a few of them stop nothing. An outage is another thing: most episodes have lost their
tool, or so many that nothing is left to compare. Then a few are tried again now and then, and once one comes through,
all that were lost are played again. Seeds follow from the episodes' names, so that the run is the one that it would
have been.

An episode that fails each time by itself (code that never ends) is no outage. So that it is not waited for, episodes
that have come through and used a tool are tried, too: if they come through again, the tool is there.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentrl.console import duration
from agentrl.errors import OutageError
from agentrl.rollouts.play import Episode, Player, episodes_of, lost_its_tool
from agentrl.types import Task, Trajectory

TRIED = 2  # episodes of each kind that are tried at a time
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0


class Stopped(BaseException):
    """Somebody has asked the run to stop while it waited."""


@dataclass
class Patience:
    """Plays episodes as a `Player` does; waits up to `wait_s` for a tool that is away (0: not at all)."""

    wait_s: float
    say: Callable[[str], None] = lambda line: None
    alarm: Callable[[str], None] = lambda message: None  # once for each outage
    stopping: threading.Event = field(default_factory=threading.Event)  # set: no longer wait

    def collect(
        self, player: Player, tasks: Sequence[Task], group_size: int, *, prefix: str = "", what: str = ""
    ) -> list[Trajectory]:
        """`group_size` episodes of each task, in spite of an outage. `what` names the step for the messages.

        Raises OutageError where the tool stays away for longer than `wait_s`, Stopped where `stopping` was set.
        """
        found = player.collect(tasks, group_size, prefix=prefix)
        return self._settled(player, episodes_of(tasks, group_size, prefix), found, what or prefix)

    def play(self, player: Player, episodes: list[Episode], what: str) -> list[Trajectory]:
        """`player.replay`, in the same way."""
        return self._settled(player, episodes, player.replay(episodes), what)

    def _settled(self, player: Player, episodes: list[Episode], found: list[Trajectory], what: str) -> list[Trajectory]:
        if self.wait_s > 0 and is_outage(found, envs := [e.task.env for e in episodes]):
            self._wait(player, episodes, found, envs, what)
        return found

    def _wait(
        self, player: Player, episodes: list[Episode], found: list[Trajectory], envs: list[str], what: str
    ) -> None:
        """Fill `found` again. See the module's docstring."""
        began, pause_s, attempt = time.monotonic(), FIRST_PAUSE_S, 0
        about = self._count(found, what)
        self.say(f"{about}; waiting up to {duration(self.wait_s)} for the tool")
        self.alarm(f"{about}; the run waits up to {duration(self.wait_s)} for the tool (rollout.outage_wait_s)")
        while True:
            left_s = self.wait_s - (time.monotonic() - began)
            if left_s <= 0:
                raise OutageError(
                    f"{self._count(found, what)}, and the tool did not come back within rollout.outage_wait_s = "
                    f"{self.wait_s:g} s. Fix the tool or server"
                )
            if self.stopping.wait(min(pause_s, left_s)):
                raise Stopped
            pause_s, attempt = min(2 * pause_s, LONGEST_PAUSE_S), attempt + 1
            if self._is_back(player, episodes, found, attempt):
                again = _play_lost(player, episodes, found)
                if not is_outage(found, envs) or self._is_back(player, episodes, found, attempt + 1):
                    waited = duration(time.monotonic() - began)
                    self.say(f"{what}: the tool is back after {waited}; {again} episodes were played again")
                    return
            self.say(
                f"{what}: the tool is still away ({duration(time.monotonic() - began)} of {duration(self.wait_s)})"
            )

    def _is_back(self, player: Player, episodes: list[Episode], found: list[Trajectory], attempt: int) -> bool:
        """Try a few: others of the lost ones each time, and some that have used a tool before."""
        lost = [k for k, t in enumerate(found) if lost_its_tool(t)]
        away = {episodes[k].task.env for k in lost}  # another environment's tool tells nothing
        used = [k for k, t in enumerate(found) if t.error is None and len(t.turns) > 1 and episodes[k].task.env in away]
        start = attempt * TRIED % len(lost) if lost else 0
        tried = [*(lost[start:] + lost[:start])[:TRIED], *used[:TRIED]]
        return any(not lost_its_tool(t) for t in player.replay([episodes[k] for k in tried]))

    def _count(self, found: list[Trajectory], what: str) -> str:
        lost = [t for t in found if lost_its_tool(t)]
        why = sorted({str(t.error) for t in lost})
        more = f" and {len(why) - 1} other errors" if len(why) > 1 else ""
        return f"{what}: {len(lost)} of {len(found)} episodes lost their tool ({why[0]}{more})"


def _play_lost(player: Player, episodes: list[Episode], found: list[Trajectory]) -> int:
    """Play what has lost its tool again, into `found`; how many that were.

    A server that has just come back may not bear all of them at once: repeated for as long as fewer are lost.
    """
    first = lost = [k for k, t in enumerate(found) if lost_its_tool(t)]
    while lost:
        for k, t in zip(lost, player.replay([episodes[k] for k in lost])):
            found[k] = t
        before, lost = lost, [k for k in lost if lost_its_tool(found[k])]
        if len(lost) == len(before):
            break
    return len(first)


def is_outage(found: Sequence[Trajectory], envs: Sequence[str] = ()) -> bool:
    """Whether most episodes have lost their tool, or so many that no group of several has two left to compare.

    `envs` names the environment of each: where one of several has lost its tool, that is an outage, too.
    """
    if len(set(envs)) > 1:
        return any(is_outage([t for t, e in zip(found, envs) if e == name]) for name in set(envs))
    lost = sum(map(lost_its_tool, found))
    left = Counter(t.group_id for t in found if t.error is None)
    grouped = max(Counter(t.group_id for t in found).values(), default=0) > 1
    return lost > 0 and (2 * lost > len(found) or (grouped and max(left.values(), default=0) < 2))
