"""Playing in the agent's place."""

import gymnasium
import pytest

from agentrl.envs.calculator import CalculatorEnv
from agentrl.envs.errors import ToolFailure
from agentrl.envs.play import MAX_SHOWN, play, printable
from agentrl.envs.search import SearchEnv
from agentrl.retriever.errors import RetrieverUnavailable
from tests.retriever.helpers import Fake

TASK = {"question": "Who?", "golden_answers": ["Edda"]}


def session(env, lines, **arguments):
    """(result, everything shown); `lines` are typed one after the other, then comes Ctrl-D."""
    shown, typed = [], iter(lines)

    def read(prompt):
        shown.append(prompt)
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    return play(env, input=read, output=shown.append, **arguments), "\n".join(shown)


def test_an_episode():
    env = gymnasium.wrappers.TimeLimit(SearchEnv(retriever=Fake()), 9)
    result, shown = session(env, ["<search> q </search> cut off", "<answer> edda </answer>"], options=TASK)
    assert result == 1.0
    assert "Question: Who?" in shown and "Doc 1(Title: T) q" in shown
    assert "(an action ends at </search> or </answer>; :quit leaves)" in shown
    assert shown.endswith("terminated after 2 turns, reward 1, kind 'answer', answer 'edda', correct True")


def test_an_action_ends_at_its_first_stop_string():
    said = []

    class Listening(CalculatorEnv):
        def step(self, action):
            said.append(action)
            return super().step(action)

    session(Listening(), ["<calc> 1 </calc> and <answer> 2 </answer>", "no tags"])
    assert said == ["<calc> 1 </calc>", "no tags"]


@pytest.mark.parametrize("lines", [[], [":quit"], [" :q "], ["hm", ":quit", "never read"]])
def test_leaving(lines):
    result, shown = session(SearchEnv(retriever=Fake()), lines, options=TASK)
    assert result is None and "terminated" not in shown


def test_a_failing_tool_is_said():
    fake = Fake(RetrieverUnavailable("the server\x1b[2J is down"))
    result, shown = session(
        SearchEnv(retriever=fake), ["<search> q </search>", "<answer> Edda </answer>"], options=TASK
    )
    assert result is None
    assert "the tool failed: the server\\x1b[2J is down" in shown and "terminated" not in shown
    with pytest.raises(ToolFailure):
        env = SearchEnv(retriever=fake)
        env.reset(options=TASK)
        env.step("<search> q </search>")


def test_the_seed_chooses_the_task():
    shown = [session(SearchEnv(), [], seed=s)[1] for s in (1, 1, 2)]
    assert shown[0] == shown[1] != shown[2]


def test_tool_output_cannot_drive_the_terminal():
    assert printable("a\x1b[2Jb\rc\x00\u202ed\ud800\ufeff\x9b") == "a\\x1b[2Jb\\rc\\x00\\u202ed\\ud800\\ufeff\\x9b"
    assert printable("naïve 東京\n\ttab") == "naïve 東京\n\ttab"
    assert printable("x" * (MAX_SHOWN + 1234)).endswith("x … 1,234 characters more")
