"""Paths of a config that hold from any folder. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.config.schema import EnvEntry, RunConfig

#: Keys that may name a file or folder of this machine (or a hub id, a recipe, a URL, which stay as they are).
LOCAL = ("model.path", "data.train", "data.test", "retriever.index", "retriever.encoder", "warm_start.file")


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same config, with the whole path of each local file that it names: for a run's own `config.yaml`.

    Paths are relative to the folder that a command is called from. A resume or an evaluation may be called from another
    one. What does not exist here (a hub id) stays. Of `env.kwargs`, an index folder given as `retriever` counts too.
    """
    config = config.model_copy(deep=True)
    for key in LOCAL:
        part, name = key.split(".")
        owner = getattr(config, part)
        value = getattr(owner, name, None)  # a part that is not there names nothing
        if (whole := _absolute(value)) != value:
            setattr(owner, name, whole)
    for env in config.env if isinstance(config.env, list) else [config.env]:
        if "retriever" in env.kwargs:
            env.kwargs = env.kwargs | {"retriever": _absolute(env.kwargs["retriever"])}
        if isinstance(env, EnvEntry):
            env.data.train, env.data.test = _absolute(env.data.train), _absolute(env.data.test)
            env.retriever.index = _absolute(env.retriever.index)
    return config


def _absolute(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser()
    try:
        return str(path.absolute()) if path.exists() else value
    except (OSError, ValueError):  # too long for a path, or a NUL byte
        return value
