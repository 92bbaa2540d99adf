"""An environment: a Gymnasium class of text."""

from typing import Any

import gymnasium

from agentrl.envs.spaces import AnyText


class EchoEnv(gymnasium.Env[str, str]):
    """One turn, whose reward is the share of vowels."""

    single_turn = True

    def __init__(self, *, factor: float = 1.0) -> None:
        self.observation_space, self.action_space = AnyText(), AnyText()
        self.factor = factor

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The question."""
        super().reset(seed=seed)
        return (options or {}).get("question", "say something"), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The end."""
        share = sum(c in "aeiou" for c in action) / max(len(action), 1)
        return "", self.factor * share, True, False, {"kind": "answer", "valid": True}
