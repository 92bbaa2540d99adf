"""Single-turn mathematics: the question, one response with the answer in a box, a grade.

The task of the NTHR paper. Left out: code execution, multi-turn correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from agentrl.envs.grading import DEADLINE_S, Grade, agrade, grade, last_boxed
from agentrl.envs.spaces import AnyText
from agentrl.envs.tasks import choose_task, read_task, read_tolerance
from agentrl.errors import need

PROMPT = (
    "Solve the following problem. Reason step by step, then give the final answer inside \\boxed{{}}.\n\n"
    "Problem: {question}"
)


class MathEnv(gymnasium.Env[str, str]):
    """A mathematics problem, one response with the answer in a box: `agentrl/Math-v0`.

    reset(options={"question": str, "golden_answers": [str]}) gives the prompt; without options one of `tasks` is drawn.
    The one step gives the reward: `correct_reward` for a correct answer, plus `format_reward` for a complete box
    that is not empty. The last box counts. Only the action is read. A task may give an absolute `tolerance`.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (as gymnasium.Env declares it)
    single_turn = True  # rules that speak of searches or turns ask this
    example_actions = ("Two and three are \\boxed{5}.",)

    def __init__(
        self,
        *,
        tasks: Sequence[dict[str, Any]] = (),
        prompt_template: str = PROMPT,
        correct_reward: float = 1.0,
        format_reward: float = 0.0,
        deadline_s: float = DEADLINE_S,
        render_mode: str | None = None,
    ) -> None:
        need("agentrl/Math-v0", "math_verify", "pebble")  # not for every answer, but no run gets by without
        if "{question}" not in prompt_template:
            raise ValueError("prompt_template has no {question}; say where the question goes")
        self.observation_space, self.action_space = AnyText(), AnyText()
        before, after = prompt_template.split("{question}", 1)
        self._open, self._close = (
            before.replace("{{", "{").replace("}}", "}"),
            after.replace("{{", "{").replace("}}", "}"),
        )
        self.correct_reward, self.format_reward, self.deadline_s = correct_reward, format_reward, deadline_s
        self.render_mode = render_mode
        self._tasks = list(tasks) or [DEFAULT_TASK]
        self.stop_strings: tuple[str, ...] = ()
        self._golden: list[str] = []
        self._tolerance: float | None = None
        self._transcript = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a problem. Raises TaskError where the options hold no question or no golden answer."""
        super().reset(seed=seed)
        task = choose_task(options, self._tasks, self.np_random)
        question, self._golden = read_task(task)
        self._tolerance = read_tolerance(task)
        parts = {"open": self._open, "body": question, "close": self._close}
        prompt = "".join(parts.values())
        self._transcript = prompt
        return prompt, {"observation_parts": parts}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Grade the response; the episode is over."""
        self._check_begun()
        answer, span = _answer(action)
        result = grade(answer, self._golden, deadline_s=self.deadline_s, tolerance=self._tolerance)
        return self._outcome(action, span, result)

    def _check_begun(self) -> None:
        if not self._golden:
            raise gymnasium.error.ResetNeeded("step() was called before reset(), or after the episode ended")

    def _outcome(
        self, action: str, span: tuple[int, int] | None, result: Grade
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        reward = self.correct_reward * result.correct + self.format_reward * (span is not None)
        info: dict[str, Any] = {
            "kind": "answer" if span else "invalid",
            "valid": span is not None,
            "answer": None if span is None else action[slice(*span)].strip(),
            "correct": result.correct,
            "graded_by": result.method,
            "searchable": False,  # there is nothing to search: a share of searches would be a made-up 0
        }
        if span is not None:
            info["answer_span"] = span
        self._golden = []
        self._transcript += action
        return "", float(reward), True, False, info

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """`reset` for an event loop."""
        return self.reset(seed=seed, options=options)

    async def astep(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """`step` for an event loop: while others' answers are graded, the time of this episode stands still."""
        self._check_begun()
        answer, span = _answer(action)
        result = await agrade(answer, self._golden, deadline_s=self.deadline_s, tolerance=self._tolerance)
        return self._outcome(action, span, result)

    def render(self) -> str | None:  # type: ignore[override]
        """The episode so far, where render_mode is ansi."""
        return self._transcript if self.render_mode == "ansi" else None


def _answer(action: str) -> tuple[str | None, tuple[int, int] | None]:
    """(content, its characters) of the box that counts; an empty box is no answer, and earns nothing for its form."""
    span = last_boxed(action)
    if span is None or not action[slice(*span)].strip():
        return None, None
    return action[slice(*span)], span


DEFAULT_TASK = {"question": "What is 2 + 3?", "golden_answers": ["5"]}
