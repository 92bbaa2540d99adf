"""Where alarms go. A sink is a callable of one `Alarm`; none of them may hold up or end a training step.

Standard library only, but for the webhook (httpx) and the trackers' own packages, which are imported when asked for.
The run directory is a sink of its own: `agentrl.runs.log.RunLog.alarm`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from agentrl import plugins
from agentrl.errors import AgentRLError
from agentrl.monitors import bodies
from agentrl.monitors.bodies import as_json
from agentrl.types import Alarm

if TYPE_CHECKING:
    from agentrl.monitors.delivery import Webhook

WEBHOOK_VARIABLE = "AGENTRL_WEBHOOK"
Sink = Callable[[Alarm], None]
_COLOURS = {"info": "36", "warn": "33", "critical": "31;1"}


def console(stream: TextIO | None = None, strict: bool = False) -> Sink:
    """Two lines per alarm on `stream` (stderr by default); coloured only on a terminal.

    `strict`: a stream that cannot be written is an error; otherwise a closed terminal does not stop a run.
    """

    def write(alarm: Alarm) -> None:
        out = stream if stream is not None else sys.stderr
        word = f"{alarm.level.upper():8s}"
        if out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
            word = f"\x1b[{_COLOURS[alarm.level]}m{word}\x1b[0m"
        lines = [f"step {alarm.step}  {word} {alarm.rule}: {alarm.message}"]
        if alarm.groups:
            lines.append(f"    questions: {', '.join(alarm.groups)}")
        lines.append(f"    {alarm.remedy}")
        with contextlib.nullcontext() if strict else contextlib.suppress(OSError, ValueError):
            print("\n".join(lines), file=out, flush=True)

    return write


class Guarded:
    """A sink with its failures logged once instead of raised."""

    def __init__(self, sink: Sink, name: str) -> None:
        self.sink, self.name = sink, name
        self.failed = self.total = 0
        self.reason = ""

    def __call__(self, alarm: Alarm) -> None:
        """Hand the alarm on."""
        self.total += 1
        try:
            self.sink(alarm)
        except Exception as error:
            if not self.failed:
                import logging

                logging.getLogger(__name__).exception("alarm sink %s failed; further failures are not shown", self.name)
            self.failed += 1
            self.reason = f"{type(error).__name__}: {error}"

    @property
    def undelivered(self) -> int:
        """Alarms that the sink did not take; those of a sink that delivers by itself as it says."""
        return self.failed + int(getattr(self.sink, "undelivered", 0))

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
    hook = webhook_from_environment(bodies.about(run=source))
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


def webhook_from_environment(extra: dict[str, Any] | None = None) -> Webhook | None:
    """The webhook that AGENTRL_WEBHOOK names, or None. Its URL is often a secret, so no config file holds it.

    Raises `AgentRLError` for a URL that cannot be one, without repeating it.
    """
    url = os.environ.get(WEBHOOK_VARIABLE)
    if not url:
        return None
    from agentrl.monitors.delivery import Webhook  # threads and queues, for who posts

    try:
        return Webhook(url, extra=extra)
    except ValueError:
        raise AgentRLError(f"{WEBHOOK_VARIABLE} is set, but not to an http:// or https:// address") from None


def wandb() -> Sink:
    """`wandb.alert` on the current run; raises ImportError with the remedy where wandb is missing."""
    from agentrl.monitors.delivery import optional

    module = optional("wandb")
    levels = {"info": "INFO", "warn": "WARN", "critical": "ERROR"}

    def write(alarm: Alarm) -> None:
        if module.run is not None:
            level = getattr(module.AlertLevel, levels[alarm.level])
            module.alert(title=f"{alarm.rule} at step {alarm.step}", text=_text(alarm), level=level)

    return Guarded(write, "wandb")


def trackio() -> Sink:
    """`trackio.alert` on the current run; raises ImportError with the remedy where trackio is missing."""
    from agentrl.monitors.delivery import optional

    module = optional("trackio")
    levels = {"info": "INFO", "warn": "WARN", "critical": "ERROR"}

    def write(alarm: Alarm) -> None:
        level = getattr(module.AlertLevel, levels[alarm.level])
        module.alert(title=f"{alarm.rule} at step {alarm.step}", text=_text(alarm), level=level)

    return Guarded(write, "trackio")


def _text(alarm: Alarm) -> str:
    return "\n".join([alarm.message, *bodies.cause({"story": alarm.story, "message": alarm.message}), alarm.remedy])
