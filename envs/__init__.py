"""Environments: plain `gymnasium.Env[str, str]`. Importing this package makes them known to `gymnasium.make`.

Without an import, `gymnasium.make("agentrl.envs:agentrl/Search-v0")` imports it.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

import gymnasium

from agentrl import plugins
from agentrl.errors import missing_package, nearest

#: What is registered beside the class itself.
MORE = {"agentrl/Search-v0": {"vector_entry_point": "agentrl.envs.vector:SearchVectorEnv"}}


class EnvInfo(NamedTuple):
    """One registered environment. `parameters` are the constructor's, with their defaults as (shortened) text."""

    id: str
    summary: str
    entry_point: str
    parameters: dict[str, str]
    origin: str = ""  # "built in", the installed package that brings it, or the module that has registered it


def register_envs() -> None:
    """Register agentrl's environments and those of installed packages, whose ids are the names of their entry points.

    Twice is once, and nothing of them is imported. A name that Gymnasium does not take as an id stays unknown.
    """
    for found in plugins.available("environment"):
        if found.name not in gymnasium.registry:
            with suppress(gymnasium.error.Error):
                gymnasium.register(found.name, entry_point=found.target, **MORE.get(found.name, {}))  # type: ignore[arg-type]


def list_envs() -> list[EnvInfo]:
    """All registered environments that Gymnasium does not bring itself, by id: agentrl's and those of plug-ins.

    An environment whose module cannot be imported is listed with the reason as its summary.
    """
    return [
        _info(name, spec.entry_point)
        for name, spec in sorted(gymnasium.registry.items())
        if spec.entry_point is not None and not _where(spec.entry_point).startswith("gymnasium.")
    ]


class NotRegistered(gymnasium.error.Error):
    """There is no environment of that id; the text says why, and what to do."""


def made_or_told(env_id: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """`gymnasium.make`, whose NotRegistered says what is missing in place of the nearest robot that Gymnasium knows."""
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        raise NotRegistered(_why_unknown(env_id)) from error
    except ModuleNotFoundError as error:  # Gymnasium's own, with the true one as its cause
        cause = error.__cause__ if isinstance(error.__cause__, ModuleNotFoundError) else error
        if (missing := missing_package(env_id, cause)) is not None:
            raise missing from error
        module, absent = env_id.rpartition(":")[0], cause.name or ""
        if not absent or not f"{module}.".startswith(f"{absent}."):  # something that the module itself imports
            raise NotRegistered(f"{env_id}: {module or 'its class'} cannot be imported: {cause}") from error
        raise NotRegistered(
            f"{env_id}: there is no module {module!r}; it is looked for in the current folder and among installed "
            "packages, and written package.module:Namespace/Name-v0"
        ) from error


HOW = 'call gymnasium.register("{}", entry_point=YourClass) in it, outside of functions (docs/environments.md)'


def _why_unknown(env_id: str) -> str:
    module, _, name = env_id.rpartition(":")
    if module:
        own = [n for n, spec in gymnasium.registry.items() if _where(spec.entry_point or "").startswith(module)]
        what = f"registers {', '.join(own)}, not {name}{nearest(name, own)}" if own else f"registers no {name}"
        return f"{env_id}: {module} was imported and {what}: {HOW.format(name)}"
    known = plugins.unknown(env_id, [e.id for e in list_envs()])
    how = "one of your own is written module:Namespace/Name-v0, and its module calls gymnasium.register"
    return f"there is no environment {env_id!r} ({how}: docs/environments.md){known}"


def _where(entry: Any) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}:{getattr(entry, '__qualname__', repr(entry))}"


def _default(value: Any) -> str:
    text = getattr(value, "__name__", repr(value))
    return text if len(text) <= 60 else text[:59] + "…"


def _info(name: str, entry: Any) -> EnvInfo:
    where = _where(entry)
    known = {p.name: p.origin for p in plugins.available("environment")}
    origin = known.get(name) or f"registered by {where.partition(':')[0]}"
    try:
        made = entry
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            made = getattr(import_module(module), attribute)
        parameters = inspect.signature(made).parameters.values()
    except Exception as e:  # a plug-in's own fault must not hide the other environments
        return EnvInfo(name, f"cannot be imported: {type(e).__name__}: {e}", where, {}, origin)
    summary = (inspect.getdoc(made) or "").split("\n\n")[0].replace("\n", " ").removesuffix(f": `{name}`.")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    defaults = {p.name: "required" if p.default is p.empty else _default(p.default) for p in named}
    return EnvInfo(name, summary, where, defaults, origin)


register_envs()
