"""Environments that are made once and played many times, from one event loop.

An environment with coroutines `astep` and `areset` (and `aclose`) is awaited. Any other may block, so it lives on a
thread of its own: its calls never wait for those of another environment, and it never changes threads (some tools
insist on that). The threads are daemons: a tool that never returns can hold up neither Ctrl-C nor the program's end.

Left out: wrappers around an asynchronous environment are bypassed, because Gymnasium's have no coroutines.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

import gymnasium

from agentrl.envs.returns import Returns

CLOSE_S = 2.0  # an environment that takes longer to close is left to its daemon thread
T = TypeVar("T")
Step = tuple[str, float, bool, bool, dict[str, Any]]  # observation, reward, terminated, truncated, info


class _Thread:
    """Runs calls one after the other on one daemon thread."""

    def __init__(self, name: str, returns: Returns) -> None:
        self._returns = returns
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """A future of the running loop for the result of `call`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        returns = self._returns

        def work() -> None:
            try:
                result = call()
            except BaseException as error:
                returns.put(future, None, error)
            else:
                returns.put(future, result, None)

        self._calls.put(work)
        return future

    def finish(self, last: Callable[[], None], wait_s: float) -> None:
        """Run `last` after what is queued, then end; waits at most `wait_s` for that."""

        def work() -> None:
            with suppress(Exception):  # nobody is left to hear about a tool that cannot close
                last()

        self._calls.put(work)
        self._calls.put(None)
        self._thread.join(wait_s)


class EnvHandle:
    """One environment, blocking or not, behind two coroutines."""

    def __init__(self, env: gymnasium.Env[Any, Any], returns: Returns, name: str = "") -> None:
        inner = env.unwrapped
        self.env = env
        self.name = name  # of the environment among a run's several
        self.id: str = env.spec.id if env.spec is not None else type(inner).__name__
        self.stop_strings: tuple[str, ...] = tuple(getattr(inner, "stop_strings", ()))
        self.abandoned = False  # a call was given up: it may still be running, so the environment is not played again
        self.aclose: Callable[[], Coroutine[Any, Any, None]] | None = getattr(inner, "aclose", None)
        self._areset = getattr(inner, "areset", None)
        self._astep = getattr(inner, "astep", None)
        self._returns = returns
        self._thread: _Thread | None = None

    def reset(self, *, seed: int, options: dict[str, Any]) -> Coroutine[Any, Any, tuple[str, dict[str, Any]]]:
        """The first observation and info."""
        if self._areset is not None:
            return self._finish(self._areset(seed=seed, options=options))
        return self._block(partial(self.env.reset, seed=seed, options=options))

    def step(self, action: str) -> Coroutine[Any, Any, Step]:
        """What the environment answers to `action`."""
        if self._astep is not None:
            return self._finish(self._astep(action))
        return self._block(partial(self.env.step, action))

    async def _finish(self, call: Any) -> Any:
        try:
            return await call
        except asyncio.CancelledError:
            self.abandoned = True
            raise

    async def _block(self, call: Callable[[], Any]) -> Any:
        if self._thread is None:
            self._thread = _Thread(f"env {self.id}", self._returns)
        return await self._finish(self._thread.submit(call))

    def close(self) -> None:
        """Close the environment, on its own thread if it has one; never waits for a call that was given up."""
        if self._thread is None:
            self.env.close()
        else:
            self._thread.finish(self.env.close, 0.0 if self.abandoned else CLOSE_S)


class EnvPool:
    """Environments, made on demand and reused, and the event loop they are played on.

    They are of one kind, or of several: `make` is then a function for each name. The loop is kept between calls of
    `run`, because connections of asynchronous tools belong to it. Use as a context manager, or call `close`.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env[Any, Any]] | Mapping[str, Callable[[], gymnasium.Env[Any, Any]]]
    ) -> None:
        self._make = make if isinstance(make, Mapping) else {"": make}
        self._free: dict[str, list[EnvHandle]] = defaultdict(list)
        self._runner = asyncio.Runner()
        self._returns = Returns()
        self._running: asyncio.Task[Any] | None = None
        self._interrupted = False
        self.made = 0

    def take(self, name: str = "") -> EnvHandle:
        """A free environment of that name, or a new one."""
        if self._free[name]:
            return self._free[name].pop()
        self.made += 1
        return EnvHandle(self._make[name](), self._returns, name)

    def give(self, handle: EnvHandle) -> None:
        """Return an environment; one whose call was given up is closed instead."""
        if handle.abandoned:
            handle.close()
        else:
            self._free[handle.name].append(handle)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the pool's loop. Ctrl-C cancels it, lets it clean up, and raises KeyboardInterrupt."""

        async def known() -> T:
            self._running = asyncio.current_task()
            return await coroutine

        self._interrupted = False
        try:
            return self._runner.run(known())
        except asyncio.CancelledError:
            if self._interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            self._running = None

    def interrupt(self) -> bool:
        """What Ctrl-C does, for a signal handler that replaces the usual one; False where there is nothing to cancel.

        An exception raised by the handler itself would end up in whatever task happened to run.
        """
        if self._running is None or self._interrupted:
            return False
        self._interrupted = True
        self._running.cancel()
        self.loop.call_soon_threadsafe(lambda: None)  # wakes the loop where it waits
        return True

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of `run`."""
        return self._runner.get_loop()

    def close(self) -> None:
        """Close all free environments and the loop."""
        for handle in [h for free in self._free.values() for h in free]:
            if handle.aclose is not None:
                self._runner.run(handle.aclose())
            handle.close()
        self._free.clear()
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
