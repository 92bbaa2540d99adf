"""Which vLLM engine samples: the least loaded for a new conversation, then the same one for its cached prefix."""

from __future__ import annotations

from collections.abc import Hashable


class Router:
    """Counts requests in flight per engine. A dead engine gets nothing until `revive`."""

    def __init__(self, engines: int) -> None:
        self.load = [0] * engines
        self.alive = [True] * engines
        self._home: dict[Hashable, int] = {}

    def take(self, session: Hashable | None) -> int | None:
        """The engine for a request, which then counts as in flight; None where no engine is alive."""
        home = self._home.get(session) if session is not None else None
        if home is None or not self.alive[home]:
            living = [i for i, alive in enumerate(self.alive) if alive]
            if not living:
                return None
            home = min(living, key=lambda i: (self.load[i], i))
            if session is not None:
                self._home[session] = home
        self.load[home] += 1
        return home

    def give(self, engine: int) -> None:
        """A request has ended, whatever its end."""
        self.load[engine] -= 1

    def release(self, session: Hashable) -> None:
        """Forget a conversation."""
        self._home.pop(session, None)

    def kill(self, engine: int) -> None:
        """The engine is gone; its conversations move at their next turn."""
        self.alive[engine] = False

    def revive(self, engine: int) -> None:
        """The engine was started again."""
        self.alive[engine] = True
