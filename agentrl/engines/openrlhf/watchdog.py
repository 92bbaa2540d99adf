"""Who waits for whom. Every wait of the driver is entered here with its deadline; a thread says what takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Wait:
    """One wait that is going on."""

    who: str
    whom: str
    since: float
    deadline_s: float
    told: float  # seconds it had lasted when it was last spoken of


class Watchdog:
    """Prints each wait that lasts longer than `after_s`, again whenever that has doubled. `clock` in seconds."""

    def __init__(self, say: Callable[[str], None], after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._after_s, self._clock = say, after_s, clock
        self._waits: dict[int, Wait] = {}
        self._lock = threading.Lock()
        self._next = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def wait(self, who: str, whom: str, deadline_s: float) -> Iterator[None]:
        """Around a wait of `who` for `whom`."""
        with self._lock:
            key, self._next = self._next, self._next + 1
            self._waits[key] = Wait(who, whom, self._clock(), deadline_s, 0.0)
        try:
            yield
        finally:
            with self._lock:
                del self._waits[key]

    def look(self) -> list[str]:
        """The lines that are due now; they are said, too."""
        now, lines = self._clock(), []
        with self._lock:
            for w in self._waits.values():
                lasted = now - w.since
                if lasted >= max(self._after_s, 2 * w.told):
                    w.told = lasted
                    lines.append((w, lasted))
        grouped: dict[tuple[str, str], list[float]] = {}
        for w, lasted in lines:
            grouped.setdefault((w.who, w.whom), []).append(lasted)
        out = [
            f"waiting: {who}{f' (x{len(times)})' if len(times) > 1 else ''} for {whom}, {max(times):.0f} s so far"
            for (who, whom), times in grouped.items()
        ]
        for line in out:
            self._say(line)
        return out

    def waits(self) -> list[str]:
        """Everything that is being waited for now."""
        with self._lock:
            now = self._clock()
            return [
                f"{w.who} for {w.whom}, {now - w.since:.0f} s of at most {w.deadline_s:g} s"
                for w in self._waits.values()
            ]

    def start(self) -> None:
        """Look every few seconds until `close`."""
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.wait(min(5.0, self._after_s / 2)):
            self.look()
