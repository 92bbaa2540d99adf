"""Other environments' interfaces as one: `reset(seed, row)`, `step(action)`, `close()`, `tasks(split)`.

This file runs in the interpreter of their package (`host.py`): standard library only, and theirs inside functions.
Written for skyrl-gym 0.4 and GEM 0.1. Left out: several agents, images, GEM's wrappers (a factory of one's own has
them), skyrl-gym's `postprocessed_action`, because a token that was sampled is never replaced.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

Row = Mapping[str, Any]


class WrongShape(Exception):
    """What an environment returned is not what its interface says."""


def load(target: str) -> Any:
    """The object at `module:attribute`."""
    module, _, attribute = target.partition(":")
    found = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


class SkyRLGym:
    """skyrl-gym: one object an episode, made from the row. `env` is a registered id or `module:attribute`."""

    def __init__(self, env: str, env_config: Row, extras: Row, ground_truth: str) -> None:
        self._make = self._maker(env)
        self._config, self._extras, self._ground_truth = self._settings(env_config), dict(extras), ground_truth
        self._env: Any = None

    def reset(self, seed: int, row: Row) -> dict[str, Any]:
        """Messages of the prompt. The row's columns are the environment's `extras`."""
        self.close()
        extras = {**self._extras, **{k: v for k, v in row.items() if k != "prompt"}}
        golden = list(row.get("golden_answers") or [""])
        truth = {"target": golden} if self._ground_truth == "target" else golden[0]
        extras.setdefault("reward_spec", {"method": "rule", "ground_truth": truth})
        self._env = self._make(env_config=self._config, extras=extras)
        prompt = row.get("prompt")
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(row.get("question", ""))}]
        begun = _parts(self._env.init(messages), 2, "init")
        return {"text": _said(begun[0], "init"), "info": {"metadata": begun[1]}}

    def step(self, action: str) -> dict[str, Any]:
        """`done` is terminated: skyrl-gym knows no other end. Its metrics stand in the last step's info."""
        out = self._env.step(action)
        if not isinstance(out, Mapping) or not {"observations", "reward", "done"} <= set(out):
            raise WrongShape(f"step() returned {_short(out)}; it must have observations, reward and done")
        info: dict[str, Any] = {"metadata": out.get("metadata") or {}}
        if out["done"]:
            info["metrics"] = self._env.get_metrics()
        text = _said(out["observations"], "step")
        return {"text": text, "reward": out["reward"], "terminated": bool(out["done"]), "info": info}

    def close(self) -> None:
        """End the episode's object."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _maker(self, env: str) -> Callable[..., Any]:
        if ":" in env:
            return load(env)  # type: ignore[no-any-return]
        import skyrl_gym

        if env not in skyrl_gym.registry:
            raise ValueError(
                f"skyrl-gym knows no environment {env!r}; it knows {', '.join(sorted(skyrl_gym.registry))}"
            )
        return lambda **arguments: skyrl_gym.make(env, **arguments)

    def _settings(self, env_config: Row) -> Any:
        """As SkyRL's generator passes it."""
        try:
            from omegaconf import OmegaConf
        except ImportError:  # it comes with skyrl-gym; a class of one's own may do without
            return SimpleNamespace(**env_config)
        return OmegaConf.create(dict(env_config))


class Gem:
    """GEM: one object, reset with a seed for each episode. `env` is a registered id or `module:attribute`."""

    _global = threading.Lock()  # GEM's reset seeds the generators of the process, then draws from them

    def __init__(self, env: str, arguments: Row) -> None:
        self._make = self._maker(env, arguments)
        self._env: Any = None

    def reset(self, seed: int, row: Row) -> dict[str, Any]:
        """The row's `seed` chooses GEM's task."""
        with self._global:
            if self._env is None:
                self._env = self._make()
            observation, info = _parts(self._env.reset(seed=seed), 2, "reset")
        return {"text": observation, "info": {"metadata": info}}

    def step(self, action: str) -> dict[str, Any]:
        """Gymnasium's five."""
        observation, reward, terminated, truncated, info = _parts(self._env.step(action), 5, "step")
        return {
            "text": observation,
            "reward": reward,
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "info": {"metadata": info},
        }

    def close(self) -> None:
        """GEM has nothing to close."""

    def _maker(self, env: str, arguments: Row) -> Callable[[], Any]:
        """GEM's own ids have a colon, too."""
        try:
            import gem
            from gem.envs.registration import ENV_REGISTRY as known
        except ImportError:  # a class of one's own needs no GEM
            if ":" not in env:
                raise
            known = {}
        if env in known:
            return lambda: gem.make(env, **arguments)
        if not env.partition(":")[2].replace(".", "_").isidentifier():
            raise ValueError(f"GEM knows no environment {env!r}; it knows {', '.join(sorted(known))}"[:1500])
        made = load(env)
        return lambda: made(**arguments)


SHAPES: dict[str, Callable[..., Any]] = {"skyrl-gym": SkyRLGym, "gem": Gem}


def _parts(value: Any, n: int, method: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list) or len(value) != n:
        raise WrongShape(f"{method}() returned {_short(value)}; it must return {n} values")
    return tuple(value)


def _said(messages: Any, method: str) -> str:
    """The contents of a list of messages, as one text; their roles are lost."""
    texts = [m.get("content") if isinstance(m, Mapping) else None for m in messages or ()]
    if not all(isinstance(t, str) for t in texts):
        raise WrongShape(f"{method}() returned {_short(messages)}; it must give messages with text as their content")
    return "\n".join(texts)  # type: ignore[arg-type]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"
