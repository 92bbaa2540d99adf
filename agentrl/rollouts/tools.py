"""Tool calls in the model's own format (`rollout.tools: native`).

The tools' schemas go into the prompt by the model's own chat template, calls are read as the model writes them, and
results come back as the template's tool messages. All of it is found with probes before anything is sampled; while an
episode runs, tokens are appended as in the chat style.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from agentrl import plugins
from agentrl.config import RolloutConfig
from agentrl.envs.calls.base import Call, CallFormat
from agentrl.errors import ConfigError, ModelError
from agentrl.rollouts.template import Frame, render, tokenizer_name, variants

Schemas = list[dict[str, Any]]
Make = Callable[[], gymnasium.Env[str, str]]

PROBE = Call("agentrlprobetool", {"agentrlkey": "agentrlvalue"})
PROBE_ID = "agentrl01"  # nine letters and digits, as Mistral's template wants them
RESULTS = ("agentrlresultone", "agentrlresulttwo", "agentrlresultthree")
HOSTILE = "\n a\"b'c\\d\n<e>&amp;{{ f }}{% g %}\té \n"
QUESTION = {"role": "user", "content": "agentrlprobeuser"}


def with_tools(make: Make, tokenizer: Any, config: RolloutConfig) -> tuple[Make, Schemas | None]:
    """Environments whose tools are called natively, and the schemas to show; both as they were for `tools: text`.

    ConfigError where the environment has none to call so, ModelError where the template cannot.
    """
    if config.tools == "text":
        return make, None
    env = make()
    schemas = getattr(env.unwrapped, "schemas", None)
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    takes = callable(getattr(env.unwrapped, "use_native", None))
    env.close()
    if not schemas or not takes:
        raise ConfigError(
            [
                f"rollout.tools is native, but {name} has no tools with a schema; set rollout.tools: text, or use a "
                "ToolEnv"
            ]
        )
    shown = harmless(schemas, tokenizer)
    named = config.call_format
    found: CallFormat = plugins.find("call format", named)() if named else format_of(tokenizer, shown)

    def native() -> gymnasium.Env[str, str]:
        made = make()
        made.unwrapped.use_native(found)  # type: ignore[attr-defined]
        return made

    return native, shown


def harmless(schemas: Schemas, tokenizer: Any) -> Schemas:
    """The schemas with every control token of the tokenizer in their texts taken apart: others' tools describe them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {plain(k): plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        if isinstance(value, str):
            for token in tokens:
                value = value.replace(token, f"{token[0]} {token[1:]}")
        return value

    tokens = sorted((t for t in tokenizer.get_added_vocab() if len(t) > 1), key=len, reverse=True)
    return [plain(schema) for schema in schemas]


def format_of(tokenizer: Any, schemas: Schemas) -> CallFormat:
    """The format in which the tokenizer's template writes a call: the first that reads it back. ModelError without."""
    prompt = render(tokenizer, [QUESTION], schemas)
    if prompt == render(tokenizer, [QUESTION]):
        raise ModelError(
            f"the chat template of {tokenizer_name(tokenizer)} knows no tools: it renders the same with and without "
            "them; set rollout.tools: text, or give the tokenizer a template that does"
        )
    written = render(tokenizer, [QUESTION, _calling()], schemas, generate=False)
    said = written[_shared(written, prompt) :].rstrip()
    while ended := next((t for t in tokenizer.all_special_tokens if said.endswith(t)), None):
        said = said[: -len(ended)].rstrip()
    for plugin in plugins.available("call format"):
        known: CallFormat = plugins.find("call format", plugin.name)()
        if [(c.name, c.arguments) for c in known.read(said) if isinstance(c, Call)] == [(PROBE.name, PROBE.arguments)]:
            return known
    names = ", ".join(p.name for p in plugins.available("call format"))
    raise ModelError(
        f"the chat template of {tokenizer_name(tokenizer)} writes a call as {said[-200:]!r}, which none of the known "
        f"formats reads ({names}); set rollout.call_format to one, or to module:attribute of your own"
    )


def results_frame(tokenizer: Any, schemas: Schemas) -> Frame:
    """What the template writes around the results of one turn's calls: before, between and after them.

    ModelError where that depends on what was said before, or a result's text is changed.
    """
    reasons = []
    for calls in (False, True):
        try:
            return _results_frame(tokenizer, schemas, calls)
        except ModelError as why:
            reasons.append(str(why))
    raise ModelError(
        f"the chat template of {tokenizer_name(tokenizer)} cannot be continued with tool results by appending tokens: "
        f"{'; '.join(dict.fromkeys(reasons))}. Set rollout.tools: text, or give the tokenizer another chat_template"
    )


def _results_frame(tokenizer: Any, schemas: Schemas, calls: bool) -> Frame:
    """With assistant messages of plain text, or of calls for templates that want them before a result."""

    def rendered(results: Sequence[str], turns: int = 1) -> str:
        messages: list[dict[str, Any]] = [QUESTION]
        for _ in range(turns):
            said = _calling(len(results)) if calls else {"role": "assistant", "content": PROBE.name}
            messages += [said, *map(_result, results)]
        return render(tokenizer, messages, schemas)

    one = rendered(RESULTS[:1])
    if one.count(RESULTS[0]) != 1 or PROBE.name not in one:
        raise ModelError("a message's text is missing or repeated in what it renders")
    spoken = one[: one.index(RESULTS[0])]
    if calls:
        whole = render(tokenizer, [QUESTION, _calling()], schemas, generate=False)
        spoken = spoken[_shared(spoken, whole[: whole.rindex("}") + 1]) :].lstrip("}]")
        end = format_of(tokenizer, schemas).end
        before = spoken[at + len(end) :] if end and (at := spoken.find(end)) >= 0 else spoken
    else:
        before = spoken[spoken.rindex(PROBE.name) + len(PROBE.name) :]
    after = one[one.index(RESULTS[0]) + len(RESULTS[0]) :]
    two = rendered(RESULTS[:2])
    between = two[two.index(RESULTS[0]) + len(RESULTS[0]) : two.index(RESULTS[1])]
    for count in (1, 2, 3):
        for turns in (1, 2, 3):
            if not rendered(RESULTS[:count], turns).endswith(before + between.join(RESULTS[:count]) + after):
                raise ModelError(f"what it adds for {count} results depends on what was said before")
    hostile = HOSTILE + RESULTS[0] + HOSTILE
    text = rendered([hostile])
    for content, left, right in variants(hostile):
        if text.endswith(before + content + after):
            return Frame(before, after, left, right, "tool", between)
    raise ModelError("it changes the text of a result, for example by escaping it")


def _calling(n: int = 1) -> dict[str, Any]:
    calls = [
        {
            "id": f"{PROBE_ID[:-1]}{i + 1}",
            "type": "function",
            "function": {"name": PROBE.name, "arguments": PROBE.arguments},
        }
        for i in range(n)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _result(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "name": PROBE.name, "tool_call_id": PROBE_ID}


def _shared(a: str, b: str) -> int:
    """How many characters at the start are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
