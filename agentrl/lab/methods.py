"""What the lab compares: each method is a change of the algorithm's config, so that it is what training runs."""

from __future__ import annotations

from agentrl.config import AlgorithmConfig, advantages
from agentrl.errors import ConfigError, nearest

#: NTHR and LLDS on top of GRPO, and every advantage that needs no K.
CHANGES: dict[str, dict[str, object]] = {
    "nthr": {"name": "grpo", "nthr": {"enabled": True}},
    "random": {"name": "grpo", "nthr": {"enabled": True, "baseline": "random"}},
    "llds": {"name": "grpo", "loss": {"llds": {"enabled": True}}},
    "llds_ma": {"name": "grpo", "loss": {"llds": {"enabled": True, "answer_weight": "schedule"}}},
    "nthr+llds": {"name": "grpo", "nthr": {"enabled": True}, "loss": {"llds": {"enabled": True}}},
    **{name: {"name": name} for name, row in advantages.built_in().items() if not row.takes_k},
}


def known_methods(names: str) -> list[str]:
    """Comma-separated names as a list, each once. Raises ConfigError for names that do not exist, and for none."""
    found = list(dict.fromkeys(n.strip() for n in names.split(",") if n.strip()))
    if not found:
        raise ConfigError([f"no method is named in {names!r}; known: {', '.join(CHANGES)}"])
    for name in found:
        _check(name)
    return found


def _check(method: str) -> None:
    if method not in CHANGES:
        known = ", ".join(CHANGES)
        raise ConfigError([f"method {method!r} is unknown{nearest(method, list(CHANGES))}; known: {known}"])


def method_config(base: AlgorithmConfig, method: str) -> AlgorithmConfig:
    """`base` with the switches of `method`; everything that the method does not name stays as it is in `base`."""
    _check(method)
    values = base.model_dump()
    values["k"] = 1
    values["nthr"]["enabled"] = False
    values["nthr"]["baseline"] = None
    values["loss"]["llds"]["enabled"] = False
    _merge(values, CHANGES[method])
    return AlgorithmConfig.model_validate(values)


def _merge(into: dict, change: dict) -> None:
    for key, value in change.items():
        if isinstance(value, dict):
            _merge(into[key], value)
        else:
            into[key] = value
