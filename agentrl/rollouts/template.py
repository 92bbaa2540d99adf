"""What a chat template writes around one new message, found once with probe messages.

A template is a program over the whole conversation; some rewrite earlier turns (Qwen3's drops old `<think>` blocks), so
rendering a conversation again would change tokens that were sampled. Here only the text around the *newest* message is
wanted: from the end of the assistant's words to the start of the tool's, and from their end to the next generation. It
must not depend on what was said before, which is checked on conversations of several lengths and contents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentrl.errors import ModelError

Messages = list[dict[str, str]]
Render = Callable[[Messages], str]

USER, ACTION, TOOL = "agentrlprobeuser", "agentrlprobeaction", "agentrlprobetool"
HOSTILE = "\n a\"b'c\\d\n<e>&amp;{{ f }}{% g %}\té \n"  # reveals escaping, templating and stripping
ACTIONS = (ACTION, f"<think>\nwell\n</think>\n\n{ACTION}", f"<search> x </search> {ACTION}", f"two\n\nlines\n{ACTION}")


@dataclass(frozen=True)
class Frame:
    """The text around one message's content; `left` and `right` tell whether white space is stripped there."""

    before: str
    after: str
    left: bool = False
    right: bool = False
    role: str = "user"
    between: str = ""  # two results of one turn, where a message may be several


class _Unfit(Exception):
    """The template cannot be used with this role; says why."""


def render(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, *, generate: bool = True
) -> str:
    """The template's text for a conversation. ModelError where it refuses."""
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=generate)
    except Exception as error:  # templates raise whatever Jinja and their authors like
        raise ModelError(f"it refuses: {type(error).__name__}: {error}") from error
    return str(text)


def _render(tokenizer: Any, messages: Messages, tools: list[dict[str, Any]] | None = None) -> str:
    try:
        return render(tokenizer, [dict(m) for m in messages], tools)
    except ModelError as why:
        raise _Unfit(str(why)) from why


def variants(content: str) -> list[tuple[str, bool, bool]]:
    """A content as it stands, or stripped on the left, the right, or both sides."""
    return [
        (content, False, False),
        (content.strip(), True, True),
        (content.lstrip(), True, False),
        (content.rstrip(), False, True),
    ]


def prompt_frame(tokenizer: Any, tools: list[dict[str, Any]] | None = None) -> Frame:
    """What the template writes around the first user message, up to the first generated token."""
    try:
        text = _render(tokenizer, [{"role": "user", "content": USER}], tools)
        if text.count(USER) != 1:
            raise _Unfit(f"a user message's text appears {text.count(USER)} times in what it renders")
        before, after = text.split(USER)
        hostile = HOSTILE + USER + HOSTILE
        rendered = _render(tokenizer, [{"role": "user", "content": hostile}], tools)
        for content, left, right in variants(hostile):
            if rendered == before + content + after:
                return Frame(before, after, left, right)
        raise _Unfit("it changes the text of a user message")
    except _Unfit as why:
        raise ModelError(
            f"the chat template of {tokenizer_name(tokenizer)} cannot carry a question: {why}; set rollout.prompt: raw "
            "with rollout.style: tag, or give the tokenizer another chat_template"
        ) from why


def turn_frame(tokenizer: Any) -> Frame:
    """What the template writes between an assistant message and the next generation, around a tool's output.

    Tries a `tool` message first, then a `user` message for templates that have none. Raises ModelError where neither
    gives a text that is the same whatever was said before.
    """
    reasons = []
    for role in ("tool", "user"):
        try:
            return _turn_frame(tokenizer, role)
        except _Unfit as why:
            reasons.append(f"with role {role}, {why}")
    raise ModelError(
        f"the chat template of {tokenizer_name(tokenizer)} cannot be continued by appending tokens: "
        f"{'; '.join(reasons)}. Set rollout.style: tag (one raw continuation), or give the "
        "tokenizer another chat_template"
    )


def _turn_frame(tokenizer: Any, role: str) -> Frame:
    def render(actions: tuple[str, ...], content: str, user: str = USER) -> str:
        messages = [{"role": "user", "content": user}]
        for k, action in enumerate(actions):
            last = k == len(actions) - 1
            messages.append({"role": "assistant", "content": action})
            messages.append({"role": role, "content": content if last else f"earlier{k}"})
        return _render(tokenizer, messages)

    text = render((ACTION,), TOOL)
    if text.count(ACTION) != 1 or text.count(TOOL) != 1 or text.index(ACTION) > text.index(TOOL):
        raise _Unfit("a message's text is missing, repeated or out of order in what it renders")
    before, after = text.split(ACTION)[1].split(TOOL)

    hostile = HOSTILE + TOOL + HOSTILE
    text = render((ACTION,), hostile)
    fits = [(left, right) for c, left, right in variants(hostile) if text.endswith(ACTION + before + c + after)]
    if not fits:
        raise _Unfit("it changes the text of the message, for example by escaping it")
    left, right = fits[0]

    for user in (USER, "a much longer question\nof several lines, with a number: 12\n" * 3 + USER):
        for n in range(1, 5):
            for action in ACTIONS:
                history = (*ACTIONS[: n - 1], action)
                if not render(history, TOOL, user).endswith(ACTION + before + TOOL + after):
                    raise _Unfit(
                        f"what it adds for a new message depends on earlier ones (after {n} assistant "
                        f"message{'s' * (n > 1)}, the last being {action!r})"
                    )
    return Frame(before, after, left, right, role)


def tokenizer_name(tokenizer: Any) -> str:
    """The name of a tokenizer, for messages."""
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
