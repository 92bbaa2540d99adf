"""Every call format: what is written is read, what is broken is explained, nothing raises, time is linear."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import plugins
from agentrl.envs.calls.base import MAX_CALLS, BadCall, Call

NAMES = [p.name for p in plugins.available("call format")]
FORMATS = [plugins.find("call format", name)() for name in NAMES]
each = pytest.mark.parametrize("format", FORMATS, ids=NAMES)
NESTED = {"query": 'the "best" </tool_call> [TOOL_CALLS] ; {x}', "n": 3, "filters": {"year": [2024, None, True]}}

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)
PIECES = [
    "<tool_call>", "</tool_call>", '{"name": "search", "arguments": {"query": "x"}}', '{"name": "open"', "[TOOL_CALLS]",
    "[ARGS]", "<|python_tag|>", "<|im_end|>", "</think>", "<think>", "[{", "}]", "NaN", '{"name": "a", "name": "b"}',
    '{"name": "a", "arguments": {"x": NaN}}', "\ud800", ";", "```json\n", "```", '"', "\\", "[" * 300, " ",
    "\n", '{"name": 3}', '{"name": "a", "arguments": [1]}', '{"name": "a", "arguments": "{}"}', "search",
]  # fmt: skip


def test_there_are_those_of_the_field():
    assert {"hermes", "llama", "mistral", "json", "xml"} <= set(NAMES)


@each
def test_what_a_format_writes_it_reads(format):
    assert format.read(format.write("search", {"query": "x"})) == [Call("search", {"query": "x"})]
    assert format.read("no call at all") == [] and format.read("") == []
    assert format.read("<think> maybe " + format.write("a", {}) + " </think> no") == []
    if format.name not in (
        "hermes",
        "mistral",
        "xml",
    ):  # whose marks may not stand in a string, as in everybody's parser
        assert format.read(format.write("f", NESTED)) == [Call("f", NESTED)]


@pytest.mark.parametrize(
    "name, text, calls",
    [
        ("hermes", 'I look.\n<tool_call>\n{"name": "s", "arguments": {"q": "x"}}\n</tool_call>\n'
         '<tool_call>{"name": "o"}</tool_call>',
         [Call("s", {"q": "x"}), Call("o", {})]),
        ("hermes", '<tool_call> oh <tool_call>{"name": "s"}</tool_call>', [Call("s", {})]),
        ("llama", '<|python_tag|>{"name": "s", "parameters": {"q": "x"}}', [Call("s", {"q": "x"})]),
        ("llama", '{"name": "s", "parameters": {"q": "a;b"}}; {"name": "o", "parameters": {}}',
         [Call("s", {"q": "a;b"}), Call("o", {})]),
        ("llama", '{"name": "s"}; {', [BadCall("json", "")]),
        ("llama", '{"name": "s"};' * (MAX_CALLS + 1) + '{"name": "s"}', [BadCall("many", "")]),
        ("llama", '{"name": "s", "parameters": {"q": "a"}}; {"name": "o", "parameters": {}}',
         [Call("s", {"q": "a"}), Call("o", {})]),
        ("mistral", '[TOOL_CALLS][{"name": "s", "arguments": {"q": "x"}}, {"name": "o", "arguments": {}}]',
         [Call("s", {"q": "x"}), Call("o", {})]),
        ("mistral", '[TOOL_CALLS]s[ARGS]{"q": "x"}[TOOL_CALLS]o[ARGS]{}', [Call("s", {"q": "x"}), Call("o", {})]),
        ("mistral", '[{"name": "s", "arguments": {}}]', [Call("s", {})]),
        ("xml", "<tool_call>\n<function=s>\n<parameter=q>\na <b>\n\n</parameter>\n<parameter=n>\n3\n</parameter>\n"
         '<parameter=l>\n["x", 1]\n</parameter>\n</function>\n</tool_call>'
         "<tool_call><function=o></function></tool_call>",
         [Call("s", {"q": "a <b>\n", "n": "3", "l": ["x", 1]}), Call("o", {})]),
        ("xml", "<tool_call><function=s><parameter=q>x</function></tool_call>", [BadCall("shape", "")]),
        ("xml", "<tool_call><function=s>x</function></tool_call>", [BadCall("shape", "")]),
        ("xml", '<tool_call>{"name": "s"}</tool_call>', [BadCall("shape", "")]),
        ("xml", "<tool_call><function=s>", [BadCall("unclosed", "")]),
        ("xml", "<tool_call><function=s><parameter=q>[1</parameter></function></tool_call>", [Call("s", {"q": "[1"})]),
        ("json", '```json\n{"name": "s", "parameters": {"q": "x"}}\n```', [Call("s", {"q": "x"})]),
        ("json", '[{"type": "function", "function": {"name": "s", "arguments": "{\\"q\\": 1}"}}]',
         [Call("s", {"q": 1})]),
    ],
)  # fmt: skip
def test_calls_as_models_write_them(name, text, calls):
    read = plugins.find("call format", name)().read(text)
    assert [c if isinstance(c, Call) else c.kind for c in read] == [c if isinstance(c, Call) else c.kind for c in calls]


@pytest.mark.parametrize(
    "text, kind, why",
    [
        ("<tool_call>{</tool_call>", "json", "not valid JSON"),
        ('<tool_call>{"name": "s", "arguments": {"x": NaN}}</tool_call>', "json", "not valid JSON"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "json", "not valid JSON"),
        ('<tool_call>{"arguments": {}}</tool_call>', "shape", 'no "name"'),
        ('<tool_call>{"name": "s", "arguments": 5}</tool_call>', "shape", "not a JSON object"),
        ("<tool_call>[1]</tool_call>", "shape", "JSON object"),
        ('<tool_call>{"name": "s"}', "unclosed", "was not closed"),
        ('<tool_call>{"name": "s"}</tool_call>' * (MAX_CALLS + 1), "many", f"at most {MAX_CALLS} calls"),
    ],
)
def test_what_is_wrong_is_explained(text, kind, why):
    (bad,) = plugins.find("call format", "hermes")().read(text)
    assert isinstance(bad, BadCall) and bad.kind == kind and why in bad.why and len(bad.why) < 300


@each
@settings(max_examples=20, deadline=None)
@given(name=st.text(min_size=1, max_size=20), arguments=st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_any_arguments_survive(format, name, arguments):
    try:
        written = format.write(name, arguments)
    except TypeError:  # lone surrogates are no JSON
        return
    if any(m in written for m in ("</think>",)) or (format.name == "hermes" and written.count("tool_call>") != 2):
        return
    if format.name == "mistral" and written.count("[TOOL_CALLS]") + written.count("[ARGS]") != 1:
        return
    if format.name == "llama" and "<|python_tag|>" in written:
        return
    if format.name == "xml":  # has no types: text comes back as text
        arguments = {f"k{i}": f"v {v}" for i, v in enumerate(arguments.values())}
        written = format.write(name, arguments)
        if not name.strip() or any(c.isspace() or c in "<>" for c in name) or "<" in "".join(arguments.values()):
            return
    assert format.read(written) == [Call(name, arguments)]


@each
@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=30))
def test_hostile_turns_give_typed_results(format, pieces):
    read = format.read("".join(pieces))
    assert isinstance(read, list) and len(read) <= MAX_CALLS + 1
    for call in read:
        assert isinstance(call, Call | BadCall)
        assert isinstance(call, BadCall) or (isinstance(call.name, str) and isinstance(call.arguments, dict))


@each
@pytest.mark.parametrize(
    "piece", ["<tool_call>", "[TOOL_CALLS]", "[{", '{"name": "a"};', "</think>", "[ARGS]", "[", '{"a":']
)
def test_time_is_linear_in_the_length(format, piece):
    def seconds(n: int) -> float:
        text = piece * (n // len(piece))
        began = time.process_time()
        format.read(text)
        return time.process_time() - began

    seconds(10_000)
    assert seconds(1_000_000) < 1.0
