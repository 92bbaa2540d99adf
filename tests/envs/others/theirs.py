"""Environments in the shapes of skyrl-gym and GEM, some of which misbehave; they run in a process of their own."""

import os
import sys
import time


class Skyrl:
    """Three turns of an echo. An action may say how it misbehaves."""

    def __init__(self, env_config, extras):
        self.extras, self.turns, self.config = extras, 0, env_config

    def init(self, prompt):
        how = self.extras.get("how")
        if how == "no pair":
            return prompt
        if how == "raise":
            raise KeyError("level")
        return prompt, {"extras": self.extras}

    def step(self, action):
        print("their output is not ours")
        self.turns += 1
        match action:
            case "late":
                time.sleep(30)
            case "slow":
                time.sleep(0.2)
            case "die":
                print("out of cheese", file=sys.stderr)
                os._exit(7)
            case "exit":
                sys.exit(3)
            case "none":
                return None
            case "text":
                return {"observations": "text", "reward": 0.0, "done": False}
            case "reward":
                return {"observations": [], "reward": "much", "done": False}
            case "nan":
                return {"observations": [], "reward": float("nan"), "done": False}
        done = self.turns >= 3
        said = [{"role": "user", "content": f"{action} {self.turns}"}]
        return {"observations": said, "reward": 0.25, "done": done, "metadata": {"odd": {1, 2}}}

    def get_metrics(self):
        return {"turns": self.turns}

    def close(self):
        pass


class Gem:
    """Says the seed it was reset with."""

    def __init__(self, limit=9):
        self.limit = limit

    def reset(self, seed=None):
        return f"seed {seed}", {"limit": self.limit}

    def step(self, action):
        return (action, 1, True, False, {}) if action != "four" else (action, 1, True, False)


def slow_to_begin(**arguments):
    time.sleep(0.2)
    return Skyrl(**arguments)
