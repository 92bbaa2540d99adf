"""Plug-ins as somebody else would write them: a rule, a log format, a sink."""

from typing import ClassVar

from agentrl.monitors.sources.base import NO, SURE, Row, Source
from agentrl.monitors.view import Finding


class Tells:
    """Fires at once, and tells the threshold that it was given."""

    name = "tells"

    def __call__(self, view):
        limit = view.thresholds.collapse.clip_share
        return Finding("warn", f"clip_share is {limit}", {"reward": (0.0, limit)}, "Nothing.", immediate=True)


class Twin(Tells):
    """Has a built-in rule's name."""

    name = "collapse"


class Shouted(Source):
    """A format of its own: `!STEP REWARD` in every line."""

    def __init__(self, path, run=None):
        super().__init__(path, "shouted")
        self.left = True

    @classmethod
    def recognises(cls, look):
        return SURE if look.head.startswith(b"!") else NO

    def poll(self, final=False):
        lines = self.path.read_text().splitlines() if self.left else []
        self.left = False
        return [Row(int(s), {"reward": float(r)}) for s, r in (line[1:].split() for line in lines)]


class Kept(list):
    """A sink that keeps what it gets, under what it was made with."""

    made: ClassVar[list] = []

    def __init__(self, source, argument):
        super().__init__()
        Kept.made.append((source, argument, self))
        self.closed = False

    def close(self):
        self.closed = True

    def __call__(self, alarm):
        self.append(alarm)


def broken(source, argument):
    """A sink that fails at every alarm."""

    def write(alarm):
        raise OSError("full")

    return write
