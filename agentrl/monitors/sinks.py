"""Where alarms go. A sink is a callable of one `Alarm`; none of them may hold up or end a training step.

Standard library only, but for the webhook (httpx) and the trackers' own packages, which are imported when asked for.
The run directory is a sink of its own: `agentrl.runs.log.RunLog.alarm`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from agentrl.errors import AgentRLError
from agentrl.types import Alarm

log = logging.getLogger(__name__)
WEBHOOK_VARIABLE = "AGENTRL_WEBHOOK"
Sink = Callable[[Alarm], None]
_COLOURS = {"info": "36", "warn": "33", "critical": "31;1"}


def as_json(alarm: Alarm) -> str:
    """One line of strict JSON; a value that is not finite becomes null, because JSON has no word for it."""
    plain = asdict(alarm)
    for pair in plain["signals"].values():
        pair.update({k: None for k, v in pair.items() if not math.isfinite(v)})
    return json.dumps(plain, allow_nan=False, ensure_ascii=False)


def console(stream: TextIO | None = None) -> Sink:
    """Two lines per alarm on `stream` (stderr by default); coloured only on a terminal."""

    def write(alarm: Alarm) -> None:
        out = stream if stream is not None else sys.stderr
        word = f"{alarm.level.upper():8s}"
        if out.isatty():
            word = f"\x1b[{_COLOURS[alarm.level]}m{word}\x1b[0m"
        lines = [f"step {alarm.step}  {word} {alarm.rule}: {alarm.message}"]
        if alarm.groups:
            lines.append(f"    questions: {', '.join(alarm.groups)}")
        lines.append(f"    {alarm.remedy}")
        with contextlib.suppress(OSError, ValueError):  # a closed terminal must not stop a run
            print("\n".join(lines), file=out, flush=True)

    return write


def guarded(sink: Sink, name: str) -> Sink:
    """`sink`, with its failures logged once instead of raised."""
    failed = False

    def write(alarm: Alarm) -> None:
        nonlocal failed
        try:
            sink(alarm)
        except Exception:
            if not failed:
                log.exception("alarm sink %s failed; further failures are not shown", name)
            failed = True

    return write


def jsonl(path: str | Path) -> Sink:
    """Appends one line per alarm to a file; a failure (a full disk) is logged once."""

    def write(alarm: Alarm) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(as_json(alarm) + "\n")

    return guarded(write, str(path))


class Webhook:
    """POSTs each alarm as JSON from a background thread.

    At most `capacity` alarms wait; when the receiver is slower than that the oldest is dropped and counted in
    `dropped`. A failing receiver is logged once and never blocks. `close` waits for what is queued, up to a limit.
    """

    def __init__(
        self, url: str, timeout_s: float = 5.0, capacity: int = 100, extra: dict[str, Any] | None = None
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"webhook url is {url!r}; it must start with http:// or https://")
        _optional("httpx")  # a missing package is an error here and not in the thread
        self.url, self.timeout_s, self.extra = url, timeout_s, extra or {}
        self.dropped = self.sent = self.failed = 0
        self._queue: queue.Queue[str | None] = queue.Queue(maxsize=capacity)
        self._thread = threading.Thread(target=self._work, name="alarm-webhook", daemon=True)
        self._thread.start()

    def __call__(self, alarm: Alarm) -> None:
        """Queue the alarm; returns at once."""
        body = json.dumps({**self.extra, **json.loads(as_json(alarm))}, ensure_ascii=False)
        while True:
            try:
                self._queue.put_nowait(body)
                return
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()
                    self.dropped += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is queued and stop; gives up after `timeout_s`."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        import httpx

        with httpx.Client(timeout=self.timeout_s) as client:
            while (body := self._queue.get()) is not None:
                try:
                    headers = {"Content-Type": "application/json"}
                    client.post(self.url, content=body.encode(), headers=headers).raise_for_status()
                    self.sent += 1
                except httpx.HTTPError as error:
                    self.failed += 1
                    if self.failed == 1:
                        host = httpx.URL(self.url).host  # the rest of the URL is often a secret, errors repeat it
                        reason = str(error).replace(self.url, "the URL")
                        log.warning("webhook at %s: %s; further failures are not shown", host, reason)


def webhook_from_environment(extra: dict[str, Any] | None = None) -> Webhook | None:
    """The webhook that AGENTRL_WEBHOOK names, or None. Its URL is often a secret, so no config file holds it.

    Raises `AgentRLError` for a URL that cannot be one, without repeating it.
    """
    url = os.environ.get(WEBHOOK_VARIABLE)
    if not url:
        return None
    try:
        return Webhook(url, extra=extra)
    except ValueError:
        raise AgentRLError(f"{WEBHOOK_VARIABLE} is set, but not to an http:// or https:// address") from None


def wandb() -> Sink:
    """`wandb.alert` on the current run; raises ImportError with the remedy where wandb is missing."""
    module = _optional("wandb")
    levels = {"info": "INFO", "warn": "WARN", "critical": "ERROR"}

    def write(alarm: Alarm) -> None:
        if module.run is not None:
            level = getattr(module.AlertLevel, levels[alarm.level])
            module.alert(title=f"{alarm.rule} at step {alarm.step}", text=_text(alarm), level=level)

    return guarded(write, "wandb")


def trackio() -> Sink:
    """`trackio.alert` on the current run; raises ImportError with the remedy where trackio is missing."""
    module = _optional("trackio")
    levels = {"info": "INFO", "warn": "WARN", "critical": "ERROR"}

    def write(alarm: Alarm) -> None:
        level = getattr(module.AlertLevel, levels[alarm.level])
        module.alert(title=f"{alarm.rule} at step {alarm.step}", text=_text(alarm), level=level)

    return guarded(write, "trackio")


def _text(alarm: Alarm) -> str:
    return f"{alarm.message}\n{alarm.remedy}"


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"alarms to {name} need the package: pip install {name}") from error
