"""Deliver alarms to a webhook: in order, each until it is taken, and never in the way of a training step.

What may pass (a lost connection, 408, 425, 429, 5xx) is tried again with growing pauses, or after what `Retry-After`
asks for. What will not (another 4xx, a redirect, whose target might get the secret in the address) is refused for good,
and the receiver's own words are kept as the reason. An alarm that was taken without an answer that says so is posted
again: its `id`, also sent as Idempotency-Key, tells a receiver that it is the same one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl.monitors import bodies
from agentrl.types import Alarm

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 120.0, 300.0)  # the last one from then on
PATIENCE_S = 6 * 3600.0  # how long one alarm is tried: a receiver that is down for a night is not, for good
LONGEST_WAIT_S = 3600.0  # whatever Retry-After says
CLOSING_S = 15.0
ANSWER = 300  # bytes of a refusal that are kept
_PASSING = {408, 425, 429}
_Waiting = tuple[str, dict[str, Any], Callable[[], None]]  # id, fields, what to call when it was taken


class Refused(Exception):
    """The receiver will not take this, however often it is sent."""


class Later(Exception):
    """It may take it later; `after`: seconds that it asks for."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class Webhook:
    """POSTs each alarm as JSON from a background thread.

    At most `capacity` alarms wait; when the receiver is slower than that the oldest is dropped and counted in
    `dropped`. `sent`, `failed` and `reason` (of the last failure) say what came of the others. `close` waits for what
    is queued, up to a limit.
    """

    name = "webhook"

    def __init__(
        self,
        url: str,
        timeout_s: float = 10.0,
        capacity: int = 100,
        extra: Mapping[str, Any] | None = None,
        pauses: Sequence[float] = PAUSES_S,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"webhook url is {url!r}; it must start with http:// or https://")
        optional("httpx")  # a missing package is an error here and not in the thread
        self.url, self.timeout_s, self.extra = url, timeout_s, dict(extra or {})
        self.pauses = tuple(pauses)
        self.dropped = self.sent = self.failed = 0
        self.reason = ""
        self._taken = 0  # alarms ever handed over
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(maxsize=capacity)
        self._end: float | None = None  # when to give up, once it is closing
        self._closing = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="alarm-webhook", daemon=True)
        self._thread.start()

    @property
    def undelivered(self) -> int:
        """Alarms that no receiver has taken (yet): failed, dropped, queued, in flight."""
        return self._taken - self.sent

    @property
    def total(self) -> int:
        """Alarms that were handed over."""
        return self._taken

    def __call__(self, alarm: Alarm) -> None:
        """Queue the alarm; returns at once."""
        self.post(alarm)

    def post(self, alarm: Alarm, delivered: Callable[[], None] = lambda: None) -> None:
        """The same; `delivered` is called, from the thread, when it was taken."""
        self._taken += 1
        one = (alarm.id, bodies.facts(alarm, self.extra), delivered)  # the time is the alarm's, not its delivery's
        while True:
            try:
                self._queue.put_nowait(one)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                    self.dropped += 1
                    self.reason = self.reason or "the receiver is slower than the alarms"
                except queue.Empty:
                    continue

    def close(self, timeout_s: float = CLOSING_S) -> None:
        """Send what is queued and stop; gives up after `timeout_s`."""
        self._end = time.monotonic() + timeout_s
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(max(0.0, self._end - time.monotonic()))
        if self.undelivered and not self.reason:
            self.reason = f"no answer within {timeout_s:g} s"

    # ------------------------------------------------------------------------------------------------------ the thread

    def _work(self) -> None:
        import httpx

        with httpx.Client(timeout=self.timeout_s, follow_redirects=False) as client:
            while (one := self._queue.get()) is not None:
                key, fields, delivered = one
                if self._deliver(client, key, fields):
                    self.sent += 1
                    delivered()
                else:
                    self.failed += 1

    def _deliver(self, client: Any, key: str, fields: dict[str, Any]) -> bool:
        """Until it is taken, refused, or there is no time left."""
        begun, tries = time.monotonic(), 0
        while True:
            try:
                self._post(client, key, fields)
                return True
            except Refused as error:
                self._say(str(error))
                return False
            except Later as error:
                self._say(str(error))
                pause = self.pauses[min(tries, len(self.pauses) - 1)]
                pause = max(pause, min(error.after, LONGEST_WAIT_S))
            tries += 1
            if time.monotonic() - begun + pause > PATIENCE_S or not self._wait(pause):
                return False

    def _wait(self, pause: float) -> bool:
        """Whether another attempt fits. A wait that closing interrupts goes on, as far as its limit allows."""
        until = time.monotonic() + pause
        if self._closing.wait(pause):
            end = self._end or 0.0
            if until > end:
                return False
            time.sleep(max(0.0, until - time.monotonic()))
        return True

    def _post(self, client: Any, key: str, fields: dict[str, Any]) -> None:
        """One attempt; Refused or Later where it is not taken."""
        import httpx

        content = json.dumps(bodies.body(self.url, fields), ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json", "Idempotency-Key": key.encode("ascii", "replace").decode()}
        try:
            with client.stream("POST", self.url, content=content, headers=headers) as answer:
                status, asked = answer.status_code, answer.headers.get("Retry-After", "")
                if 200 <= status < 300:
                    return
                said = self._answer(answer)
        except httpx.TimeoutException:
            raise Later(f"no answer within {self.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Later(f"{type(error).__name__}: {error}") from None
        if status in _PASSING or status >= 500:
            raise Later(f"it answered {status}{said}", seconds_of(asked))
        if 300 <= status < 400:
            target = httpx.URL(answer.headers.get("Location", "")).host or "another address"
            raise Refused(f"it answered {status}, a redirect to {target}, which is not followed: give the new address")
        raise Refused(f"it answered {status}{said}")

    def _answer(self, answer: Any) -> str:
        """The first bytes of the receiver's reason; it may send as slowly as it likes, it is not waited for long."""
        import httpx

        got, until = b"", time.monotonic() + 2.0
        try:
            for part in answer.iter_raw(ANSWER):
                got += part
                if len(got) >= ANSWER or time.monotonic() > until:
                    break
        except httpx.HTTPError:
            pass
        words = " ".join(got[:ANSWER].decode("utf-8", "replace").split())
        return f": {''.join(c if c.isprintable() else '?' for c in words)}" if words else ""

    def _say(self, reason: str) -> None:
        """Keep the reason, and log the first one. The address is often a secret, and errors repeat it."""
        import logging

        import httpx

        host = httpx.URL(self.url).host
        path = httpx.URL(self.url).raw_path.decode("ascii", "replace")
        self.reason = reason.replace(self.url, "the URL")
        if len(path) > 1:
            self.reason = self.reason.replace(path, "/...")
        if not self._warned:
            self._warned = True
            logging.getLogger(__name__).warning(
                "webhook at %s: %s; it is tried again where that can help, silently", host, self.reason
            )


def seconds_of(text: str, now: float | None = None) -> float:
    """What a `Retry-After` header asks for: seconds or a date; 0 where it says nothing that can be read."""
    try:
        return max(0.0, min(float(text), LONGEST_WAIT_S)) if text.strip() else 0.0
    except ValueError:
        pass
    import email.utils  # a date is rare, and the package is large

    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return max(0.0, min(when - (time.time() if now is None else now), LONGEST_WAIT_S))


def optional(name: str) -> Any:
    """The module; ImportError with the remedy where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"alarms to {name} need the package: pip install {name}") from error
