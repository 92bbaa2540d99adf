"""Follow one log whatever happens to its file: `Following` gives each row of a run once.

| what happens | what is done |
|---|---|
| it grows | the new bytes are read |
| it is written anew with the same rows | it is read once, what was seen is passed over |
| it is cut back and goes on differently (a resume) | `again`: the run is read from its start once more, quietly |
| the steps go back in a file that only grows (a resume) | the same; the rows that were made again are left out |
| another run is in it, or its name leads to another file | `other`: a new run, read from its start |
| it is gone | `gone` is true until it is back |
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from agentrl.errors import AgentRLError
from agentrl.monitors.past import Found, Marks, Rows, fingerprint
from agentrl.monitors.sources.base import Row, Source

RESOLVE_S = 2.0  # how often a folder or a link is looked up again while nothing is written
REPLAYS = 50  # resumes of one run that are replayed; a step counter that goes back all the time is none
TRIES = 5  # a file that is written anew while it is read
SLACK = 1  # steps that a row may be late, as in `StepAssembler`


class Following:
    """The rows of the log that `opener` opens. `other` and `again` are called before the first row of what follows.

    `opener(newest)`: of several runs in a folder the newest is to be taken, as it is once one of them is followed.
    """

    def __init__(self, path: str | Path, opener: Callable[[bool], Source]) -> None:
        self.name = path
        self.source = opener(False)
        self.gone = False
        self.other: Callable[[str], None] = lambda run: None
        self.again: Callable[[], None] = lambda: None
        self._open = opener
        self._rows, self._marks = Rows(), Marks()
        self._steps = array("q")  # of every row; -1 where it has none
        self._last: Row | None = None
        self._skip: list[tuple[int, int]] = []  # places of rows that a resume made again
        self._replays = 0
        self._run = ""
        self._stale = False  # the log must be opened again
        self._resolved = time.monotonic()
        self._restarts = 0

    @property
    def run(self) -> str:
        """A name for the run that is read; empty before its first row."""
        return self._run

    def poll(self, final: bool = False) -> list[Row]:
        """Rows that are new, as `Source.poll`; none where all are read."""
        for _ in range(TRIES):
            if not self._look():
                return []
            while rows := self.source.poll(final):
                if self.source.restarts != self._restarts:  # a format that sees by itself that its past is another
                    self._restarts = self.source.restarts
                    self._reread()
                if not self._intact():  # these rows may be of either file
                    break
                fresh = self._take(rows)
                if fresh is None:  # read from the start again
                    break
                if fresh:
                    return fresh
            else:
                if not self._moved():
                    return []
        return []

    def close(self) -> None:
        """Close the source."""
        self.source.close()

    # ------------------------------------------------------------------------------------------------------- the file

    def _look(self) -> bool:
        """Whether there is something to read; a file that is another one now is opened again."""
        try:
            held = self._marks.renew(self.source.files())
        except FileNotFoundError:
            if not self._moved():
                self.gone = True
                return False
            held = True
        except OSError as error:
            self.source.problem(f"cannot be read: {error.strerror}")
            return False
        self.gone = False
        self._stale = self._stale or not held
        return not self._stale or self._reopen()

    def _intact(self) -> bool:
        try:
            return self._marks.hold()
        except OSError:
            return False

    def _moved(self) -> bool:
        """Whether the name leads to another file by now; looked up now and then, where it can."""
        now = time.monotonic()
        path = Path(self.name).expanduser()
        leads = path.is_dir() or (os.path.lexists(path) and os.path.realpath(path) != os.path.abspath(path))
        if not leads or now - self._resolved < RESOLVE_S:
            return False
        self._resolved = now
        before = os.path.realpath(self.source.path)
        try:
            found = self._open(True)
        except (AgentRLError, OSError):
            return False
        if os.path.realpath(found.path) == before:
            found.close()
            return False
        self._switch(found)
        return True

    def _reopen(self) -> bool:
        """Begin at the start of the file; not before something is in it."""
        try:
            if self.source.path.is_file() and self.source.path.stat().st_size == 0:
                return False
            self._switch(self._open(True))
        except (AgentRLError, OSError):
            return False
        return True

    def _switch(self, source: Source) -> None:
        self.source.close()
        self.source, self._restarts, self._stale = source, source.restarts, False
        self._reread()
        self._marks.clear()
        self._marks.renew(source.files())

    # ------------------------------------------------------------------------------------------------------- the rows

    def _reread(self) -> None:
        self._rows.reread()

    def _take(self, rows: list[Row]) -> list[Row] | None:
        """Those of `rows` that are new; None where the log must be read from its start."""
        fresh: list[Row] = []
        for row in rows:
            found = self._rows.take(row)
            if found is Found.SEEN:
                continue
            if found is Found.OTHER:
                self._forget()
                self._rows.take(row)
                self._begin(row)
            elif found is Found.CHANGED:
                self._forget()
                self._replay()
                return None
            elif not self._run:
                self._begin(row)
            place = len(self._rows) - 1
            back = self._goes_back(row)
            if back is not None:
                self._skip.append((back, place))
                if back:
                    self._replays += 1
                    self._replay()
                    return None
                self._begin(row)
            self._steps.append(-1 if row.step is None else row.step)
            if any(start <= place < end for start, end in self._skip):
                continue
            self._last = row
            fresh.append(row)
        return fresh

    def _begin(self, row: Row) -> None:
        self._run = f"{fingerprint(row):016x}"
        self.other(self._run)

    def _goes_back(self, row: Row) -> int | None:
        """The place of the first row that `row` makes again (0: the run begins again); None where it makes none."""
        last, place = self._last, len(self._steps)
        if row.step is None or last is None or last.step is None or row.step >= last.step - SLACK:
            return None
        if self._replays >= REPLAYS or any(place == end for _, end in self._skip):
            return None
        if 2 * len(row.values.keys() & last.values.keys()) < len(row.values):  # an evaluation that took long
            return None
        gone = {i for start, end in self._skip for i in range(start, end)}
        kept = [i for i in range(place) if i not in gone]
        back = next((i for i in kept if self._steps[i] >= row.step), None)
        return 0 if kept and back == kept[0] else back

    def _replay(self) -> None:
        """Read the run from its start again, under the same name."""
        self._rows.clear()
        self._steps, self._last, self._stale = array("q"), None, True
        self.again()

    def _forget(self) -> None:
        self._rows.clear()
        self._steps, self._last, self._skip, self._replays = array("q"), None, [], 0
