"""One checker for all environments: Gymnasium's own, then what rollouts need, with hostile text on every way in.

    for finding in check("my_package:MyEnv-v0"):
        print(finding)

The tool is driven by `example_actions`, an attribute of the environment: actions that call the tool and then answer.
Where the constructor has a parameter `tool` (a callable that returns text) or `retriever` (an object with
`search_batch`), the checker puts a hostile and a broken one in its place. Left out: wrappers, and time limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium

from agentrl.envs import checks, hostile, made_or_told
from agentrl.envs.audit import check_audit
from agentrl.envs.checks import Level, Problem, Subject, short
from agentrl.envs.graded import check_grader
from agentrl.errors import MissingPackageError


class Finding(NamedTuple):
    """The outcome of one check: `error` will break or mislead training, `warning` may, `ok` is as it should be."""

    level: Level
    check: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:7} {self.check}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")


def check(env_id: str, /, **kwargs: Any) -> list[Finding]:
    """Check the environment that `gymnasium.make(env_id, **kwargs)` makes; never raises for what is wrong with it.

    MissingPackageError where it needs an extra that is not installed: then nothing can be said about it.
    """

    def make(**more: Any) -> gymnasium.Env[Any, Any]:
        return made_or_told(env_id, {**kwargs, **more})

    return check_env(make)


def check_env(make: Callable[..., gymnasium.Env[Any, Any]]) -> list[Finding]:
    """Check the environments that `make` makes; it is called several times, also with `tool=` or `retriever=`."""
    try:
        subject = Subject(make)
    except MissingPackageError:
        raise
    except Exception as e:
        return [Finding("error", "make", f"{type(e).__name__}: {e}", "it must be possible to make it")]
    findings = []
    for name, run, established in CHECKS:
        found = [Finding(level, name, message, remedy) for level, message, remedy in _guarded(run, subject)]
        findings += list(dict.fromkeys(found)) or [Finding("ok", name, established)]
        if name == "text" and found and found[0].level == "error":
            break  # nothing else makes sense without text
    return findings


def _guarded(run: Callable[[Subject], Iterator[Problem]], subject: Subject) -> Iterator[Problem]:
    try:
        yield from run(subject)
    except MissingPackageError:
        raise
    except Exception as e:
        yield "error", f"raised {type(e).__name__}: {short(str(e))}", "no text and no task may do that"


Check = tuple[str, Callable[[Subject], Iterator[Problem]], str]
CHECKS: tuple[Check, ...] = (
    ("gymnasium", checks.check_gymnasium, "passes Gymnasium's check_env"),
    ("text", checks.check_text, "text in, text out"),
    ("stop strings", checks.check_stop_strings, "actions end where they should"),
    ("tasks", checks.check_tasks, "takes {id, question, golden_answers}"),
    ("episode", checks.check_episode, "observations, rewards and infos of an episode are well formed"),
    ("end", checks.check_end, "ends by itself"),
    ("determinism", checks.check_determinism, "the same seed, task and actions give the same episode"),
    ("independence", checks.check_apart, "environments do not disturb each other"),
    ("async", checks.check_async, "astep, where there is one, plays as step does"),
    ("hostile questions", hostile.check_questions, "no text of a question breaks it"),
    ("hostile actions", hostile.check_actions, "no text of the model breaks it"),
    ("hostile tool", hostile.check_tool, "no text of the tool changes the reward or leaves its frame"),
    ("grader", check_grader, "of the answers and attacks that are known, none is graded wrongly"),
    ("audit", check_audit, "no trick that is known earns more than a wrong answer"),
    ("tool failure", hostile.check_tool_failure, "a broken tool is a failed episode, not a wrong one"),
)
