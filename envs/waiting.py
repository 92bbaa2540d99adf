"""Time that an episode spends in a queue is not its own: it does not count against the caller's time limit.

The caller sets the limit with `time_limit`, an environment's coroutine waits for a shared service inside `uncounted`.
The service must have a deadline of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

_limit: ContextVar[asyncio.Timeout | None] = ContextVar("time_limit", default=None)


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """`asyncio.timeout` that `uncounted` knows. Raises TimeoutError where the body's own time is over."""
    async with asyncio.timeout(seconds) as limit:
        token = _limit.set(limit)
        try:
            yield limit
        finally:
            _limit.reset(token)


@contextmanager
def uncounted() -> Iterator[None]:
    """The time inside is given back to the limit around it, where there is one."""
    limit = _limit.get()
    when = None if limit is None or limit.expired() else limit.when()
    if limit is None or when is None:  # none, or an outer `uncounted` has stopped the clock
        yield
        return
    loop = asyncio.get_running_loop()
    began = loop.time()
    limit.reschedule(None)
    try:
        yield
    finally:
        limit.reschedule(when + loop.time() - began)
