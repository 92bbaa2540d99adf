"""How episodes of the search world are written: with Search-R1's tags, or with native tool calls.

The words are those of a word-level tokenizer: everything that is written here stands between spaces. The native form
is what the template below renders and what `agentrl.envs.calls.hermes` reads; a test compares it with rollouts token by
token.
"""

from __future__ import annotations

from typing import Protocol

# Written without spaces, a call is one word up to its query and one after it: what merges of a large vocabulary do, and
# what keeps the words that a small model copies as near as tags keep them.
QUERY, ID, END = (
    '<tool_call>{"name":"search","arguments":{"query":"',
    '<tool_call>{"name":"open","arguments":{"id":"',
    '"}}</tool_call>',
)

# Tools by name and arguments alone: whole schemas would be most of what so small a model reads.
TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %} {{ t.function.name }}"
    "{% for p in t.function.parameters.properties %} {{ p }}{% endfor %}{% endfor %} </tools> {% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<user> {{ m.content }} "
    "{% elif m.role == 'tool' %}<tool> {{ m.content }} </tool> "
    "{% elif m.role == 'assistant' %}{{ m.content or '' }}"
    '{% for c in m.tool_calls or [] %}<tool_call>{"name":"{{ c.function.name }}",'
    '"arguments":{{ c.function.arguments | tojson }}}</tool_call>{% endfor %} <eos> '
    "{% else %}{{ raise_exception('roles are user, assistant and tool') }}{% endif %}{% endfor %}"
)


class Form(Protocol):
    """The words of one way to write an episode. `specials` and `marks` are added tokens, which data cannot spell."""

    specials: tuple[str, ...]  # <pad>, <eos> and <unk> first
    marks: tuple[str, ...]  # like specials, but part of what is said: never taken off a turn's end
    words: tuple[str, ...]
    template: str | None

    def question(self, text: str, *, tools: bool = True) -> str:
        """What comes before the first turn."""
        ...

    def search(self, query: str) -> str:
        """The end of a turn that searches."""
        ...

    def found(self, passages: str) -> str:
        """What the search is answered with."""
        ...

    def answer(self, answer: str) -> str:
        """The end of a turn that answers."""
        ...

    def spoilt(self, answer: str) -> tuple[str, ...]:
        """Ends of a last turn that went wrong, of which a demonstration takes one."""
        ...


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Tags:
    """Search-R1's tags, one raw continuation."""

    specials: tuple[str, ...] = (
        "<pad>", "<eos>", "<unk>", "<think>", "</think>", "<search>", "</search>", "<information>", "</information>",
        "<answer>", "</answer>",
    )  # fmt: skip
    marks: tuple[str, ...] = ()
    words: tuple[str, ...] = _words("question: doc of ? . need find now let me search next not sure try again nothing")
    template: str | None = None

    def question(self, text: str, *, tools: bool = True) -> str:
        """Without any tools to show."""
        return f"question: {text}"

    def search(self, query: str) -> str:
        """Between two tags."""
        return f"<search> {query} </search>"

    def found(self, passages: str) -> str:
        """Between two tags."""
        return f"<information> {passages}</information>"

    def answer(self, answer: str) -> str:
        """Between two tags."""
        return f"<answer> {answer} </answer>"

    def spoilt(self, answer: str) -> tuple[str, ...]:
        """Without the tags, or without the end."""
        return f"<answer> {answer} <eos>", f"{answer} <eos>", "<search> <eos>", "<think> not sure <eos>"


class ToolCalls:
    """Messages of a chat template; a search is a call in JSON, and a turn without a call is the answer."""

    specials: tuple[str, ...] = ("<pad>", "<eos>", "<unk>", "<tools>", "</tools>", "<user>", "<tool>", "</tool>")
    marks: tuple[str, ...] = (
        "<tool_call>", "</tool_call>", QUERY, ID, END, "<think>", "</think>", "<answer>", "</answer>",
    )  # fmt: skip
    words: tuple[str, ...] = _words("search query open id doc of ? . need find now let me next not sure nothing")
    template: str | None = TEMPLATE

    def question(self, text: str, *, tools: bool = True) -> str:
        """The user's message, after the tools."""
        shown = "<tools> search query open id </tools> " if tools else ""
        return f"{shown}<user> {text}"

    def search(self, query: str) -> str:
        """A call, which ends the turn."""
        return f"{QUERY} {query} {END}"

    def found(self, passages: str) -> str:
        """The end of the turn, and the tool's message."""
        return f"<eos> <tool> {passages}</tool>"

    def answer(self, answer: str) -> str:
        """Between two tags, so that to answer is one decision, and not one for each name that may be the answer."""
        return f"<answer> {answer} </answer> <eos>"

    def spoilt(self, answer: str) -> tuple[str, ...]:
        """Calls and answers without an end, calls without a name, thoughts without an answer."""
        return (
            f"<answer> {answer} <eos>",
            f"<tool_call> {answer} </tool_call>",
            f"{QUERY} <eos>",
            "<think> not sure <eos>",
        )
