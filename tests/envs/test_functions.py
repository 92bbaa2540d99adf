"""Functions as tools: schema, arguments, state, and what is refused."""

from __future__ import annotations

import socket
from typing import Literal

import pytest

from agentrl.envs.functions import Bound, as_text, tool, tool_of


@tool
def population(city: str, year: int = 2024, *, unit: Literal["people", "millions"] = "people") -> str:
    """How many people live in a city.

    Counted by others.

    Args:
        city: its English name
        year (int): of the count
    """
    return f"{city} {year} {unit}"


def test_the_schema_is_made_of_annotations_and_docstring():
    assert population.schema == {
        "type": "function",
        "function": {
            "name": "population",
            "description": "How many people live in a city.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "required": ["city"],
                "properties": {
                    "city": {"type": "string", "description": "its English name"},
                    "year": {"type": "integer", "description": "of the count", "default": 2024},
                    "unit": {"type": "string", "enum": ["people", "millions"], "default": "people"},
                },
            },
        },
    }
    assert tool_of(lambda: "x", name="now").parameters == {
        "type": "object", "properties": {}, "additionalProperties": False
    }  # fmt: skip


def test_arguments_are_checked_and_problems_explained():
    assert population.arguments({"city": "Oslo"}) == {"city": "Oslo"}
    assert population.arguments({"city": "Oslo", "year": "1990"}) == {"city": "Oslo", "year": 1990}
    kind, why = population.arguments({"year": 1})
    assert kind == "missing" and why == "The call of population is wrong: the argument city is missing."
    kind, why = population.arguments({"city": "Oslo", "town": 1})
    assert kind == "extra" and "there is no argument town" in why
    kind, why = population.arguments({"city": 5, "year": "many"})
    assert kind == "wrong" and "the argument city: " in why and "the argument year: " in why
    kind, why = population.arguments({str(k) * 500: k for k in range(100)})
    assert "and 98 more" in why and len(why) < 1000


def test_what_cannot_be_a_tool_is_refused_with_its_name():
    with pytest.raises(ValueError, match=r"tool f: argument x has no annotation; write x: str"):
        tool_of(eval("lambda x: x"), name="f")

    def odd(s: socket.socket) -> str:
        return ""

    with pytest.raises(ValueError, match=r"tool odd: its arguments cannot be written as JSON"):
        tool_of(odd)

    def many(*names: str) -> str:
        return ""

    with pytest.raises(ValueError, match=r"tool many: \*names.* cannot be given by name"):
        tool_of(many)
    with pytest.raises(ValueError, match="deadline_s is 0"):
        tool(deadline_s=0)(population.call)


class Notes:
    """Keeps what it is told, for one episode."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def reset(self) -> None:
        self.kept = []

    @tool
    def note(self, text: str) -> int:
        """Keep a text."""
        self.kept.append(text)
        return len(self.kept)

    @tool(name="all_notes")
    def everything(self) -> list[str]:
        """All texts."""
        return self.kept


def test_methods_are_tools_with_a_state_of_their_own():
    one, two = Bound([Notes]), Bound([Notes])
    assert list(one.tools) == ["note", "all_notes"]
    assert one.tools["note"].arguments({"text": "a"}) == {"text": "a"}
    assert "self" not in one.tools["note"].parameters["properties"]
    assert one.tools["note"].call(text="a") == 1 and one.tools["note"].call(text="b") == 2
    assert two.tools["all_notes"].call() == []
    one.reset()
    assert one.tools["all_notes"].call() == []


def test_tools_have_names_of_their_own():
    with pytest.raises(ValueError, match=r"two tools are named 'population'; .*@tool\(name"):
        Bound([population, population])
    with pytest.raises(ValueError, match="tools is empty"):
        Bound([])
    with pytest.raises(ValueError, match=r"give a list: \[calculator\]"):
        Bound("calculator")
    with pytest.raises(ValueError, match="is no tool"):
        Bound([3])
    assert list(Bound(["calculator"]).tools) == ["calculator"]


def test_results_become_text():
    assert as_text("é") == "é" and as_text({"a": [1, None]}) == '{"a":[1,null]}' and as_text(3.5) == "3.5"
    assert as_text({1, 2}) == "{1, 2}" and as_text(None) == "null"
