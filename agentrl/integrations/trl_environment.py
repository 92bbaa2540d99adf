"""Our tool environments for TRL's `environment_factory` (written for TRL 1.16): `agentrl.integrations.trl.environment`.

    env = environment("agentrl/SearchTools-v0", retriever="http://127.0.0.1:8000")
    trainer = GRPOTrainer(..., environment_factory=env, reward_funcs=env.reward, train_dataset=rows)

The rows are those of our data sets, {question, golden_answers}; a `prompt`, where they have one, comes before the
question. TRL calls the tools and never tells the environment what was answered, so the reward is a reward function. TRL
has its own limit of turns (`max_tool_calling_iterations`) and encodes what a tool returns with control tokens.

Left out: environments whose actions are text alone, such as agentrl/Search-v0: TRL has no turn without tools.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import gymnasium

import agentrl.envs  # noqa: F401  (registers them)
from agentrl.envs.errors import ToolFailure
from agentrl.envs.tools import Outcome, ToolEnv, defused
from agentrl.errors import ConfigError

KINDS: dict[str, type] = {
    "string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict,
}  # fmt: skip


class Factory:
    """Makes TRL's environments. `reward` is for `reward_funcs`, `correct` too: 1.0 where the answer is right."""

    def __init__(self, env: str, arguments: Mapping[str, Any]) -> None:
        self._env, self._arguments = env, dict(arguments)
        made = self._made()
        self._kind = _kind(made)
        made.close()

    def __call__(self) -> Any:
        """One environment, an object as TRL wants it: `reset`, and a method for each tool."""
        return self._kind(self._made())

    def reward(self, completions: Sequence[Any], environments: Sequence[Any], **_: Any) -> list[float | None]:
        """Of each completion's last message; None, which TRL leaves out, where a tool failed."""
        return [e._graded(_last(c))[0] for c, e in zip(completions, environments, strict=True)]

    def correct(self, completions: Sequence[Any], environments: Sequence[Any], **_: Any) -> list[float | None]:
        """Whether each answer is right, whatever the reward says of it."""
        return [e._graded(_last(c))[1] for c, e in zip(completions, environments, strict=True)]

    def _made(self) -> ToolEnv:
        made = gymnasium.make(self._env, disable_env_checker=True, **self._arguments).unwrapped
        if not isinstance(made, ToolEnv):
            raise ConfigError(
                [f"{self._env} has no tools that TRL could call; use a ToolEnv, such as agentrl/SearchTools-v0"]
            )
        made.use_native(made._format)  # TRL shows the tools by the model's own template
        return made


def environment(env: str, /, **arguments: Any) -> Factory:
    """The environment `env`, made with `arguments`, as TRL's `environment_factory`.

    ConfigError where it has no tools. Every instance is of one class, made here, whose methods are the tools.
    """
    return Factory(env, arguments)


class _Base:
    """What TRL resets; its subclasses have the tools. TRL takes every public method for one."""

    def __init__(self, env: ToolEnv) -> None:
        self._env = env
        self._failed: str | None = None
        self._grade: tuple[str, tuple[float | None, float | None]] | None = None

    def reset(self, **row: Any) -> str:
        """Begin a row's task; TRL appends what this returns to the last message."""
        self._failed, self._grade = None, None
        prompt, _ = self._env.reset(options={k: v for k, v in row.items() if k != "prompt"})
        return ("\n\n" if row.get("prompt") and row["prompt"][-1].get("content") else "") + prompt

    def _graded(self, text: str) -> tuple[float | None, float | None]:
        """(reward, correct) of the final message, once an episode; Nones where a tool failed."""
        if self._failed is not None:
            return None, None
        if self._grade is None or self._grade[0] != text:
            _, reward, _, _, info = self._env.finish(text)
            self._grade = text, (float(reward), float(info["correct"]))
        return self._grade[1]

    def _shown(self, outcome: Outcome) -> str:
        return defused(outcome.text)

    def _used(self, name: str, arguments: dict[str, Any]) -> Any:
        try:
            return self._env.use(name, arguments)
        except ToolFailure as failure:
            self._failed = str(failure)
            raise

    async def _awaited(self, outcome: Awaitable[Outcome]) -> str:
        try:
            return self._shown(await outcome)
        except ToolFailure as failure:
            self._failed = str(failure)
            raise


def _kind(env: ToolEnv) -> type:
    """A class with a method for each tool."""
    methods = {s["function"]["name"]: _method(s["function"], env.waits(s["function"]["name"])) for s in env.schemas}
    taken = sorted(
        set(methods) & {"reset", "get_reward"} | {n for n in methods if n.startswith("_") or not n.isidentifier()}
    )
    if taken:
        raise ConfigError([f"TRL cannot call a tool named {taken[0]!r}; rename it: @tool(name=...)"])
    return type("AgentRLEnvironment", (_Base,), methods)


def _method(schema: dict[str, Any], waits: bool) -> Callable[..., Any]:
    """A method with the names, types and Google docstring from which TRL reads the schema again."""
    name, given = schema["name"], schema["parameters"]
    known, required = given.get("properties", {}), given.get("required", ())

    def call(self: _Base, **arguments: Any) -> str:
        return self._shown(self._used(name, arguments))

    async def acall(self: _Base, **arguments: Any) -> str:
        return await self._awaited(self._used(name, arguments))

    method: Any = acall if waits else call
    method.__name__ = method.__qualname__ = name
    kinds = {n: KINDS.get(p.get("type", "string"), str) for n, p in known.items()}
    ordered = sorted(known, key=lambda n: n not in required)
    defaults = {n: inspect.Parameter.empty if n in required else known[n].get("default") for n in ordered}
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = inspect.Parameter("self", keyword)
    rest = [inspect.Parameter(n, keyword, default=defaults[n], annotation=kinds[n]) for n in ordered]
    method.__signature__ = inspect.Signature([first, *rest], return_annotation=str)
    method.__annotations__ = {**{n: kinds[n] for n in ordered}, "return": str}
    lines = [f"    {n}: {known[n].get('description') or n}" for n in ordered]
    method.__doc__ = "\n".join([schema["description"], "", *(["Args:", *lines] if lines else [])]).rstrip()
    return method  # type: ignore[no-any-return]


def _last(completion: Any) -> str:
    """The text of the last message; a completion without messages is text."""
    if isinstance(completion, str):
        return completion
    last = completion[-1] if completion else {}
    text = last.get("content") if last.get("role", "assistant") == "assistant" else ""
    return text if isinstance(text, str) else ""
