"""Our environments in SkyRL, through skyrl-gym (written for 0.4).

    skyrl_gym.register(
        id="agentrl_search",
        entry_point="agentrl.integrations.skyrl_gym:Environment",
        kwargs={"env": "agentrl/Search-v0", "arguments": {"retriever": "http://127.0.0.1:8000"}},
    )

SkyRL's rows are taken as they are: the question is the last message of `prompt`, or the column `question`; the answers
are `golden_answers`, or `reward_spec.ground_truth`. `rollout.stop` of SkyRL must be the environment's `stop_strings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from agentrl.integrations.played import Played, plain_info, task_of

Messages = list[dict[str, Any]]


class Environment(BaseTextEnv):
    """One episode of `env`, which is made with `arguments`. A tool that fails raises ToolFailure."""

    def __init__(
        self,
        env: str,
        arguments: Mapping[str, Any] | None = None,
        env_config: Any = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._row = dict(extras or {})
        self._played = Played(env, arguments)
        self.stop_strings = self._played.stop_strings
        self.max_turns = int(self._row.get("max_turns") or 1 << 30)  # the environment ends by itself

    def init(self, prompt: Messages) -> tuple[Messages, dict[str, Any]]:
        """The prompt, whose last message is what the environment says first."""
        text, info = self._played.begin(task_of(self._row, prompt))
        return [*prompt[:-1], {"role": "user", "content": text}], plain_info(info)

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """One turn. The episode is also done after `max_turns` of the row."""
        said = self._played.step(action)
        self.turns += 1
        done = said.terminated or said.truncated or self.turns >= self.max_turns
        shown = [] if done or not said.text else [{"role": "user", "content": said.text}]
        info = plain_info(said.info) | {"truncated": said.truncated}
        return BaseTextEnvStepOutput(observations=shown, reward=float(said.reward), done=done, metadata=info)

    def get_metrics(self) -> dict[str, float]:
        """Turns, reward, correct, share of valid actions."""
        return self._played.metrics()

    def close(self) -> None:
        """Close the environment."""
        self._played.env.close()
