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
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from agentrl import plugins
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


class Guarded:
    """A sink with its failures logged once instead of raised."""

    def __init__(self, sink: Sink, name: str) -> None:
        self.sink, self.name = sink, name
        self._failed = False

    def __call__(self, alarm: Alarm) -> None:
        """Hand the alarm on."""
        try:
            self.sink(alarm)
        except Exception:
            if not self._failed:
                log.exception("alarm sink %s failed; further failures are not shown", self.name)
            self._failed = True

    def close(self) -> None:
        """Close the sink where it can be closed."""
        close([self.sink])


def make(spec: str, source: str) -> Sink:
    """The sink that `NAME` or `NAME=ARGUMENT` stands for (plug-in kind "sink"): a factory of `(source, argument)`.

    `source` says whose alarms these are: the run's name, or the path that is watched. Raises PluginError for a name
    that leads nowhere, AgentRLError for what the sink lacks.
    """
    name, _, argument = spec.partition("=")
    try:
        return Guarded(plugins.find("sink", name)(source, argument), name)
    except ImportError as error:
        raise AgentRLError(f"sink {name}: {error}") from error


def close(outputs: Iterable[Sink]) -> None:
    """Close those sinks that can be closed."""
    for sink in outputs:
        if callable(end := getattr(sink, "close", None)):
            end()


def to_console(source: str, argument: str = "") -> Sink:
    """stderr, or with the argument `stdout` that."""
    return console(sys.stdout if argument == "stdout" else None)


def to_file(source: str, argument: str = "") -> Sink:
    """Lines of JSON appended to the file that the argument names."""
    if not argument:
        raise AgentRLError("sink file: say which, for example file=alarms.jsonl")
    return jsonl(argument)


def to_webhook(source: str, argument: str = "") -> Sink:
    """POST to the address in AGENTRL_WEBHOOK; an address is often a secret, so that none is taken from a config."""
    hook = webhook_from_environment({"source": source})
    if hook is None or argument:
        raise AgentRLError(f"sink webhook: its address is taken from the environment; set {WEBHOOK_VARIABLE}")
    return hook


def to_wandb(source: str, argument: str = "") -> Sink:
    """Alerts of the current W&B run."""
    return wandb()


def to_trackio(source: str, argument: str = "") -> Sink:
    """Alerts of the current trackio run."""
    return trackio()


def jsonl(path: str | Path) -> Sink:
    """Appends one line per alarm to a file; a failure (a full disk) is logged once."""

    def write(alarm: Alarm) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(as_json(alarm) + "\n")

    return Guarded(write, str(path))


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

    return Guarded(write, "wandb")


def trackio() -> Sink:
    """`trackio.alert` on the current run; raises ImportError with the remedy where trackio is missing."""
    module = _optional("trackio")
    levels = {"info": "INFO", "warn": "WARN", "critical": "ERROR"}

    def write(alarm: Alarm) -> None:
        level = getattr(module.AlertLevel, levels[alarm.level])
        module.alert(title=f"{alarm.rule} at step {alarm.step}", text=_text(alarm), level=level)

    return Guarded(write, "trackio")


def _text(alarm: Alarm) -> str:
    return f"{alarm.message}\n{alarm.remedy}"


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"alarms to {name} need the package: pip install {name}") from error
