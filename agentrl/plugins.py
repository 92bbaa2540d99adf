"""One way to name what can be replaced: `find(kind, name)`.

A name is looked up in the built-in table, then taken as `package.module:attribute`, then looked for among the entry
points of installed packages, in the group `agentrl.<kind>` (with underscores: `agentrl.log_source`). Nothing is
imported before it is asked for. Standard library only: everything may import this module, it imports `errors` alone.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from agentrl.errors import PluginError, nearest

#: kind -> name -> "module:attribute" of what agentrl ships.
BUILTIN: dict[str, dict[str, str]] = {
    "advantage": {},
    "loss": {},
    "token weight": {},
    "environment": {},
    "reward": {},
    "tool": {},
    "index": {},
    "log source": {
        "tensorboard": "agentrl.monitors.sources.tensorboard:TensorBoard",
        "wandb": "agentrl.monitors.sources.wandb:Wandb",
        "trackio": "agentrl.monitors.sources.trackio:Trackio",
        "csv": "agentrl.monitors.sources.table:Csv",
        "trainer_state": "agentrl.monitors.sources.trainer_state:TrainerState",
        "jsonl": "agentrl.monitors.sources.jsonl:JsonLines",
    },
    "monitor rule": {
        "collapse": "agentrl.monitors.collapse:Collapse",
        "death_spiral": "agentrl.monitors.health:DeathSpiral",
        "non_finite": "agentrl.monitors.health:NonFinite",
        "entropy_collapse": "agentrl.monitors.health:EntropyCollapse",
        "reward_hacking": "agentrl.monitors.health:RewardHacking",
        "mismatch": "agentrl.monitors.health:Mismatch",
        "tool_outage": "agentrl.monitors.health:ToolOutage",
        "invalid_actions": "agentrl.monitors.health:InvalidActions",
        "truncation": "agentrl.monitors.health:Truncation",
        "gradient_spike": "agentrl.monitors.health:GradientSpike",
        "no_signal": "agentrl.monitors.health:NoSignal",
    },
    "sink": {
        "console": "agentrl.monitors.sinks:to_console",
        "file": "agentrl.monitors.sinks:to_file",
        "webhook": "agentrl.monitors.sinks:to_webhook",
        "wandb": "agentrl.monitors.sinks:to_wandb",
        "trackio": "agentrl.monitors.sinks:to_trackio",
    },
    "tracker": {},
    "engine": {},
    "world": {},
}


@dataclass(frozen=True)
class Plugin:
    """One name of a kind. `origin` is "built in", or the distribution that brings it."""

    kind: str
    name: str
    target: str  # module:attribute
    origin: str


def group(kind: str) -> str:
    """The entry-point group of a kind."""
    return f"agentrl.{kind.replace(' ', '_')}"


def find(kind: str, name: str) -> Any:
    """The object that `name` stands for. PluginError, with the nearest valid name, where there is none."""
    if problem := problem_with(kind, name):
        raise PluginError(problem)
    target = BUILTIN[kind].get(name)
    if target is None:
        target = name if ":" in name else _installed(kind)[name].target
    module, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise PluginError(f"{kind} {name!r} cannot be imported from {target}: {error}") from error
    except AttributeError:
        valid = [n for n in vars(found) if not n.startswith("_")]
        raise PluginError(f"{kind} {name!r}: {module} has no {attribute!r}{nearest(attribute, valid)}") from None
    return found


def problem_with(kind: str, name: str) -> str | None:
    """Why `find` could not even look for `name`, or None; imports nothing."""
    if name in BUILTIN[kind] or name in _installed(kind):
        return None
    module, colon, attribute = name.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        return None
    valid = [p.name for p in available(kind)]
    hint = nearest(name, valid) or f"; there are {', '.join(valid)}"
    return f"there is no {kind} {name!r}{hint}, or module:attribute of your own"


def available(kind: str) -> list[Plugin]:
    """All names of a kind: the built-in ones, then those of installed packages."""
    own = [Plugin(kind, name, target, "built in") for name, target in BUILTIN[kind].items()]
    return own + [p for name, p in _installed(kind).items() if name not in BUILTIN[kind]]


@cache
def _installed(kind: str) -> dict[str, Plugin]:
    found = sorted(metadata.entry_points(group=group(kind)), key=lambda e: e.name)
    return {e.name: Plugin(kind, e.name, e.value, e.dist.name if e.dist else "?") for e in found}
