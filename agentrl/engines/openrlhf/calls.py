"""Calls to actors, and waiting for them: every wait has a deadline and is known to the watchdog."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from agentrl.engines.openrlhf.watchdog import Watchdog
from agentrl.errors import AgentRLError, RunError

DEAD = (ActorDiedError, RayActorError, ActorUnavailableError, OutOfMemoryError)  # the last: Ray has killed it
FULL = (ObjectStoreFullError, OutOfDiskError)
LONGEST = 300  # characters of a reason; Ray's own may run to thousands
FETCH_S = 60.0  # for results that are ready


class Calls:
    """The driver's calls. Several threads may make them: the workers get those of all threads in one order.

    Otherwise one rank could begin with an update and the next with a hand-over, and each wait for the other.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self._order = threading.Lock()

    def start(self, actors: Sequence[Any], method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`method` on each actor with its own arguments; returns at once."""
        try:
            with self._order:
                return [getattr(actor, method).remote(*given) for actor, given in zip(actors, arguments, strict=True)]
        except FULL as error:  # large arguments go into the object store
            raise RunError(
                f"Ray's object store has no room for the arguments of {method} ({str(error).strip().splitlines()[0]}): "
                "free disk space for what it spills, raise openrlhf.object_store_gb (a local Ray) or "
                "ray start --object-store-memory, then resume the run"
            ) from error

    def all(self, actors: Sequence[Any], method: str, *arguments: Any, whom: str, deadline_s: float) -> list[Any]:
        """`method` on every actor with the same arguments, and its results."""
        return self.results(self.start(actors, method, [arguments] * len(actors)), whom, deadline_s)

    def results(self, references: Sequence[Any], whom: str, deadline_s: float) -> list[Any]:
        """Results in the order of the calls; the first failure is raised at once.

        RunError where an actor died or the deadline passed, with what to do; an actor's own AgentRLError as it is.
        """
        end = time.monotonic() + deadline_s
        waiting = list(references)
        with self.watchdog.wait("the training loop", whom, deadline_s):
            while waiting:
                ready, waiting = ray.wait(waiting, timeout=max(0.0, end - time.monotonic()))
                if not ready:
                    others = "; ".join(self.watchdog.waits())
                    raise RunError(
                        f"waited {deadline_s:g} s for {whom}. All waits now: {others}. A worker hangs or the deadline "
                        "is too short (openrlhf.*_timeout_s): resume the run from its last checkpoint"
                    )
                _look(ready, whom)
            try:
                return ray.get(list(references), timeout=FETCH_S)
            except GetTimeoutError as error:
                raise RunError(f"results of {whom} do not arrive from Ray's object store; resume the run") from error


def _look(ready: list[Any], whom: str) -> None:
    """Raise what a finished call has failed with."""
    try:
        ray.get(ready, timeout=FETCH_S)
    except GetTimeoutError as error:
        raise RunError(f"results of {whom} do not arrive from Ray's object store; resume the run") from error
    except RayTaskError as error:
        if isinstance(error.cause, AgentRLError):
            raise error.cause from None
        if isinstance(error.cause, DEAD):
            raise RunError(
                f"a vLLM engine died while the training loop waited for {whom}; resume the run from its last checkpoint"
            ) from error
        raise error.as_instanceof_cause() from None
    except DEAD as error:
        if "creation task" in str(error):
            raise RunError(
                f"a process could not start while the training loop waited for {whom}: {_reason(error)}. Ray's logs "
                "are in session_latest/logs of its temporary folder"
            ) from error
        raise RunError(
            f"a worker died while the training loop waited for {whom}: {_reason(error)}. "
            "Resume the run from its last checkpoint; Ray's logs are in session_latest/logs of its temporary folder"
        ) from error


def _reason(error: BaseException) -> str:
    """Of an actor's death in one line: where it failed while it was made, the last line of its traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b.*: ", line)]
    line = causes[-1] if len(lines) > 1 and causes else lines[0]
    return (line if len(line) <= LONGEST else line[:LONGEST] + "…").rstrip(".")
