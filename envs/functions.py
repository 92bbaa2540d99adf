"""A Python function as a tool: its schema from annotations and docstring, its arguments checked before it is called.

    @tool
    def population(city: str, year: int = 2024) -> str:
        \"\"\"How many people live in a city.

        Args:
            city: its English name
            year: of the count
        \"\"\"

The model reads the docstring's first paragraph and the line of each argument. Methods of a class are tools likewise; of
a class, each environment makes its own object, and `reset()` is called for each episode where there is one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, overload

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict

from agentrl import plugins

_typed_dict: Any = TypedDict  # with names that are not known before
_ARGUMENT = re.compile(r"\s*(\w+)\s*(?:\([^)]*\))?\s*:\s*(\S.*)")
MAX_PROBLEMS = 3  # of one call, told to the model


@dataclass(frozen=True)
class Tool:
    """What a model may call. `call` takes the checked arguments; what it returns, or what that awaits, becomes text.

    `deadline_s`: seconds that one call may take; a plain function with one runs on a thread of its own, without one it
    runs at once and must be quick. `check` is None where whoever is called checks the arguments itself.
    """

    name: str
    description: str
    parameters: dict[str, Any]  # JSON schema of an object
    call: Callable[..., Any]
    check: TypeAdapter[dict[str, Any]] | None = None
    deadline_s: float | None = None
    waits: bool = field(default=False)  # `call` gives an awaitable

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates and OpenAI's interface take it."""
        about = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": about}

    def arguments(self, given: dict[str, Any]) -> dict[str, Any] | tuple[str, str]:
        """The arguments to call it with, or (kind of problem, what the model is told): missing, extra, wrong."""
        if self.check is None:
            return given
        try:
            return self.check.validate_python(given)
        except ValidationError as error:
            return _explained(self.name, error)


@overload
def tool(function: Callable[..., Any]) -> Tool: ...
@overload
def tool(*, name: str | None = None, deadline_s: float | None = None) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None, *, name: str | None = None, deadline_s: float | None = None
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function a tool. ValueError for an argument that has no annotation, or one that JSON cannot express."""
    if function is None:
        return lambda f: tool_of(f, name=name, deadline_s=deadline_s)
    return tool_of(function)


def tool_of(function: Callable[..., Any], *, name: str | None = None, deadline_s: float | None = None) -> Tool:
    """`function` as a tool; see `tool`."""
    named = str(name or getattr(function, "__name__", type(function).__name__))
    if deadline_s is not None and not deadline_s > 0:
        raise ValueError(f"tool {named}: deadline_s is {deadline_s}; it is a number of seconds above 0")
    description, about = _documented(inspect.getdoc(function) or "")
    fields = {p.name: _field(p, about.get(p.name)) for p in _parameters(function, named)}
    given: Any = _typed_dict(named, fields)
    given.__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        check: TypeAdapter[dict[str, Any]] = TypeAdapter(given)
        parameters = check.json_schema()
        orjson.dumps(parameters)
    except (PydanticUserError, NameError, TypeError) as error:
        raise ValueError(f"tool {named}: its arguments cannot be written as JSON: {_first_line(error)}") from error
    for part in (parameters, *parameters.get("properties", {}).values()):
        part.pop("title", None)
    parameters.setdefault("properties", {})
    called = function if inspect.isroutine(function) else type(function).__call__
    waits = inspect.iscoroutinefunction(called)
    return Tool(named, description or named, parameters, function, check, deadline_s, waits)


class Bound:
    """The tools of one environment, in order of their names' first appearance, and what to reset for each episode."""

    def __init__(self, tools: Iterable[Any]) -> None:
        """`tools`: functions, `Tool`s, objects or classes with tools as methods, names. ValueError for doubled ones."""
        self.tools: dict[str, Tool] = {}
        self._stateful: list[Any] = []
        if isinstance(tools, str):
            raise ValueError(f"tools is {tools!r}; give a list: [{tools}]")
        for given in tools:
            for found in self._each(given):
                if found.name in self.tools:
                    raise ValueError(f"two tools are named {found.name!r}; give one another name: @tool(name=...)")
                self.tools[found.name] = found
        if not self.tools:
            raise ValueError("tools is empty; give at least one")

    def reset(self) -> None:
        """Forget the episode before."""
        for holder in self._stateful:
            holder.reset()

    def _each(self, given: Any) -> Iterable[Tool]:
        found = plugins.find("tool", given) if isinstance(given, str) else given
        if isinstance(found, Tool):
            return [found]
        if isinstance(found, list | tuple):
            return [t for one in found for t in self._each(one)]
        holder = found() if isinstance(found, type) else found
        known = {n: m for kind in reversed(type(holder).__mro__) for n, m in vars(kind).items()}
        methods = [m for m in known.values() if isinstance(m, Tool)]  # in the order in which they are written
        if methods:
            if callable(getattr(holder, "reset", None)):
                self._stateful.append(holder)
            return [_of_object(method, holder) for method in methods]
        if not callable(holder):
            raise ValueError(f"{found!r} is no tool: give a function, a name, or an object with @tool methods")
        return [tool_of(holder, name=given if isinstance(given, str) and given.isidentifier() else None)]


def as_text(result: Any) -> str:
    """What a tool returned, as the model reads it: text as it is, anything else as JSON."""
    if isinstance(result, str):
        return result
    try:
        return orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError:
        return str(result)


def _of_object(method: Tool, holder: Any) -> Tool:
    return Tool(
        method.name, method.description, method.parameters, method.call.__get__(holder), method.check,
        method.deadline_s, method.waits,
    )  # fmt: skip


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    if parameters and parameters[0].name == "self" and not hasattr(function, "__self__"):
        parameters = parameters[1:]  # of a method that is not bound yet
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise ValueError(f"tool {name}: {p} cannot be given by name; a tool's arguments all have names")
        if p.annotation is p.empty:
            raise ValueError(f"tool {name}: argument {p.name} has no annotation; write {p.name}: str, for example")
    return parameters


def _field(p: inspect.Parameter, about: str | None) -> Any:
    """How a typed dictionary has this argument; where it is left out, the function's own default counts."""
    if p.default is p.empty:
        return Annotated[p.annotation, Field(description=about)]
    return NotRequired[Annotated[p.annotation, Field(description=about, json_schema_extra={"default": p.default})]]


def _documented(doc: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and the line of each argument, under `Args:` or anywhere after."""
    first, _, rest = doc.partition("\n\n")
    about = {m[1]: m[2].strip() for line in rest.splitlines() if (m := _ARGUMENT.fullmatch(line))}
    return " ".join(first.split()), about


def _explained(name: str, error: ValidationError) -> tuple[str, str]:
    problems = error.errors(include_url=False, include_context=False)
    kinds = {"missing": "missing", "extra_forbidden": "extra"}
    kind = kinds.get(problems[0]["type"], "wrong")
    said = []
    for p in problems[:MAX_PROBLEMS]:
        where = ".".join(str(part) for part in p["loc"])[:80]
        match kinds.get(p["type"], "wrong"):
            case "missing":
                said.append(f"the argument {where} is missing")
            case "extra":
                said.append(f"there is no argument {where}")
            case _:
                said.append(f"the argument {where}: {p['msg'][:120]}")
    more = len(problems) - MAX_PROBLEMS
    return kind, f"The call of {name} is wrong: {'; '.join(said)}{f'; and {more} more' if more > 0 else ''}."


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200]
