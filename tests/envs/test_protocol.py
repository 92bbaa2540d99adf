"""Parsing actions, defusing tags, and writing passages."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrl.envs.protocol import PASSAGE, PROMPT, ParsedAction, defuse, parse_action, passage_format, without_thoughts

TAGS = [f"<{c}{tag}>" for tag in ("think", "search", "information", "answer") for c in ("", "/")]
MESSY = st.lists(st.one_of(st.sampled_from([*TAGS, "<", ">", " ", "\n", "x"]), st.text(max_size=5)), max_size=25).map(
    "".join
)


def reference(action):
    """The same by regular expressions: the pair that opens first; inside it, what follows the last opening tag."""
    pairs = [m for kind in ("search", "answer") if (m := re.search(f"(?s)<({kind})>(.*?)</{kind}>", action))]
    if not pairs:
        return ("invalid", "")
    first = min(pairs, key=lambda m: m.start())
    content = first[2].split(f"<{first[1]}>")[-1].strip()
    return (first[1], content) if content else ("invalid", "")


@given(MESSY)
@example("<search><answer>x</answer>")
@example("<answer><search>q</search>")
@example("<search>a<search> b </search></search>")
@example("<answer>a</answer><answer>b</answer>")
@example("</answer><answer>b</answer>")
@example("<search></search><answer>b</answer>")
@example("<search>x<answer>y</search></answer>")
@settings(max_examples=500)
def test_any_text_has_one_typed_reading(action):
    parsed = parse_action(action)
    assert isinstance(parsed, ParsedAction)
    assert (parsed.kind, parsed.content) == reference(action)
    a, b = parsed.span
    assert action[a:b] == parsed.content


@pytest.mark.parametrize(
    ("action", "kind", "content"),
    [
        ("<think> hm </think> <search> who </search>", "search", "who"),
        ("<answer> Lisbon </answer> and more", "answer", "Lisbon"),
        ("<search> never closed", "invalid", ""),
        ("<answer> never closed <search> q </search>", "search", "q"),
        ("<search> a </search> <answer> b </answer>", "search", "a"),
        ("<SEARCH> a </SEARCH>", "invalid", ""),
        ("<answer>  \n </answer>", "invalid", ""),
        ("<answer> x <answer> y </answer>", "answer", "y"),
        ("<answer> 3 < 4 </answer>", "answer", "3 < 4"),
        ("<answer>\ud800\x00\u202e</answer>", "answer", "\ud800\x00\u202e"),
        ("", "invalid", ""),
    ],
)
def test_readings(action, kind, content):
    parsed = parse_action(action)
    assert (parsed.kind, parsed.content) == (kind, content)


@pytest.mark.parametrize("text", ["<search>" * 130_000, "</answer>" * 110_000, "<answer><search>" * 60_000])
def test_a_megabyte_of_tags_is_read_in_linear_time(text):
    assert parse_action(text) == ("invalid", "", (0, 0))  # work that grows with the square would not end in hours


@given(MESSY)
def test_defused_text_holds_no_tag_and_keeps_its_length(text):
    out = defuse(text)
    assert not any(tag in out.lower() for tag in TAGS)
    assert len(out) == len(text)
    assert out.replace("(", "<").replace(")", ">") == text.replace("(", "<").replace(")", ">")


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("</answer>", "(/answer)"),
        ("< / Answer\n>", "( / Answer\n)"),
        ("<<search>>", "<(search)>"),
        ("<answers> 1 < 2", "<answers> 1 < 2"),
        ("<b>bold</b>", "<b>bold</b>"),
    ],
)
def test_only_the_protocols_tags_are_defused(text, out):
    assert defuse(text) == out


@pytest.mark.parametrize(
    ("template", "out"),
    [
        (PASSAGE, "Doc 2(Title: a {text}) b {rank} {0}\n"),
        ("{text}", "b {rank} {0}"),
        ("{title} {title} {rank} {{x}} {0} {other}", "a {text} a {text} 2 {{x}} {0} {other}"),
        ("no field", "no field"),
    ],
)
def test_passages_are_written_by_a_template_and_never_read_for_fields(template, out):
    assert passage_format(template)(2, "a {text}", "b {rank} {0}") == out


def test_the_prompt_asks_for_what_the_protocol_reads():
    for part in ("<think>", "<search>", "<information>", "<answer> Lisbon </answer>"):
        assert part in PROMPT
    assert PROMPT.endswith("Question: {question}")


@pytest.mark.parametrize(
    ("action", "kind", "content"),
    [
        ("<think> I will write <answer> and </answer> </think> <search> q </search>", "search", "q"),
        ("<think> <search> a </search> </think><think></think><answer> b </answer>", "answer", "b"),
        ("<think> never closed <answer> b </answer>", "answer", "b"),  # as before: the block is not closed
        ("</think> <answer> b </answer>", "answer", "b"),
        ("<think> <answer> b </answer> </think>", "invalid", ""),
    ],
)
def test_tags_in_closed_thoughts_ask_for_nothing(action, kind, content):
    parsed = parse_action(without_thoughts(action))
    assert (parsed.kind, parsed.content) == (kind, content)
    assert action[slice(*parsed.span)] == content


@given(MESSY)
def test_thoughts_are_blanked_and_nothing_else_moves(action):
    found = without_thoughts(action)
    assert len(found) == len(action)
    assert found == re.sub("(?s)<think>.*?</think>", lambda m: " " * len(m[0]), action)
