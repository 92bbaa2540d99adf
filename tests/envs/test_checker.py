"""The shared checker: what is sound passes, and each fault is found by the check that is meant for it."""

import asyncio
import subprocess
import sys
import time
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_with_gymnasium

from agentrl import envs
from agentrl.envs.calculator import CalculatorEnv
from agentrl.envs.checker import CHECKS, Finding, check, check_env
from agentrl.envs.hostile import GOLD
from agentrl.envs.math import MathEnv
from agentrl.envs.search import SearchEnv
from agentrl.plugins import BUILTIN
from tests.envs.test_mcp import SERVER

KWARGS = {
    "agentrl/Mcp-v0": {"server": SERVER},
    "agentrl/SkyRLGym-v0": {"env": "tests.envs.others.theirs:Skyrl"},
    "agentrl/Gem-v0": {"env": "tests.envs.others.theirs:Gem"},
    "agentrl/Trl-v0": {"factory": "tests.envs.others.test_trl:Counter"},
}  # the others need nothing
ELSEWHERE = ("agentrl/OpenEnv-v0", "agentrl/Verifiers-v0")  # need a server and a package: others, and tests/peers
SHIPPED = [n for n in BUILTIN["environment"] if n not in ELSEWHERE]
BEHIND_A_PIPE = ["stop strings", "hostile tool"]  # neither replaced nor driven without knowing its protocol
DOUBTFUL = {
    "agentrl/Mcp-v0": ["hostile tool"],
    "agentrl/SkyRLGym-v0": BEHIND_A_PIPE,
    "agentrl/Gem-v0": BEHIND_A_PIPE,
    "agentrl/Trl-v0": ["hostile tool"],
}  # their own tests do both


@pytest.mark.parametrize("name", SHIPPED)
def test_gymnasiums_checker_has_neither_error_nor_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_with_gymnasium(gymnasium.make(name, **KWARGS.get(name, {})).unwrapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_environments_pass(name):
    findings = check(name, **KWARGS.get(name, {}))
    doubtful = [f.check for f in findings if f.level != "ok"]
    assert doubtful == DOUBTFUL.get(name, [])
    assert [f.check for f in findings] == [c[0] for c in CHECKS]


def test_arguments_go_to_the_environment():
    assert {f.level for f in check("agentrl/Calculator-v0", max_turns=2)} == {"ok"}
    [finding] = check("agentrl/Calculator-v0", colour="red")
    assert (finding.level, finding.check) == ("error", "make") and "colour" in finding.message


def test_an_unknown_environment_is_a_finding():
    [finding] = check("agentrl/Serch-v0")
    assert (finding.level, finding.check) == ("error", "make") and "Serch" in finding.message


def faults(env_class):
    """{(level, check): messages} of what is not well with environments of this class."""
    found = {}
    for f in check_env(lambda **arguments: env_class(**arguments)):
        if f.level != "ok":
            found.setdefault((f.level, f.check), []).append(f.message)
    found.pop(("warning", "gymnasium"), None)  # no render modes are checked of a class that is not registered
    return found


class Lenient(MathEnv):
    """Accepts a box that mentions the golden answer."""

    def step(self, action):
        gold = self._golden[0]
        row = super().step(action)
        row[4]["correct"] = row[4]["correct"] or gold in (row[4]["answer"] or "")
        return row


class Literal(MathEnv):
    """Compares text alone."""

    def step(self, action):
        gold = self._golden[0]
        row = super().step(action)
        row[4]["correct"] = row[4]["answer"] == gold
        return row


@pytest.mark.slow
def test_a_grader_is_played_the_corpora():
    found = faults(Lenient)
    attacks = found["error", "grader"]
    assert any("(many answers)" in m for m in attacks) and any("(relation)" in m for m in attacks)
    assert any("unequal answers of kind 'relations' are graded correct" in m for m in found["warning", "grader"])
    refused = faults(Literal)
    assert ("error", "grader") not in refused
    assert any("equal answers of kind 'powers of ten' are graded wrong" in m for m in refused["warning", "grader"])


def changed(**change):
    """A calculator environment of which some outcomes are changed: `change[name](env, row) -> row` after reset/step."""

    class Changed(CalculatorEnv):
        def reset(self, *, seed=None, options=None):
            row = super().reset(seed=seed, options=options)
            return change["reset"](self, row) if "reset" in change else row

        def step(self, action):
            self.action = action
            row = super().step(action)
            return change["step"](self, row) if "step" in change else row

    return Changed


def with_info(**items):
    return lambda env, row: (*row[:-1], {**row[-1], **items})


def test_the_class_as_it_is_has_no_fault():
    assert faults(CalculatorEnv) == {} == faults(changed()) == faults(SearchEnv)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda e, r: (r[0], float("nan"), *r[2:]), "the reward nan"),
        (lambda e, r: (r[0] + "!", *r[1:]) if r[0] else r, "open + body + close is not the observation"),
        (with_info(observation_parts={"open": "", "body": ""}), "observation_parts is"),
        (with_info(correct=np.bool_(True)), "info['correct'] is"),
        (with_info(kind=3), "info['kind'] is 3"),
        (with_info(latency_s="1"), "info['latency_s'] is"),
        (with_info(answer=7), "info['answer'] is 7"),
        (with_info(retrieved=("a",)), "info['retrieved'] is"),
        (with_info(answer_span=(0, 10_000)), "answer_span is (0, 10000)"),
        (with_info(extra={1, 2}), "info is not JSON"),
        (lambda e, r: (b"bytes", *r[1:]), "an observation of type bytes"),
    ],
)
def test_malformed_outcomes(step, message):
    found = faults(changed(step=step))
    assert any(message in m for m in found["error", "episode"])


def test_missing_parts_and_silence_are_warned_of():
    def without_parts(env, row):
        return (*row[:-1], {k: v for k, v in row[-1].items() if k != "observation_parts"})

    found = faults(changed(step=without_parts, reset=without_parts))
    assert any("gave no info['observation_parts']" in m for m in found["warning", "episode"])
    found = faults(changed(step=lambda e, r: ("", *r[1:4], {})))
    assert any("gave no text though the episode goes on" in m for m in found["warning", "episode"])


def test_an_answer_span_elsewhere_is_warned_of():
    found = faults(changed(step=lambda e, r: with_info(answer_span=(0, 3))(e, r) if r[2] else r))
    assert any("answer_span does not hold the answer" in m for m in found["warning", "episode"])


def test_what_is_not_text():
    assert check_env(lambda: gymnasium.make("CartPole-v1"))[-1] == Finding(
        "error", "text", "observations are ndarray", "rollouts need gymnasium.Env[str, str]"
    )

    class Numbers(CalculatorEnv):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.action_space = gymnasium.spaces.Discrete(3)

    assert "actions are" in faults(Numbers)["error", "text"][0]

    class Ascii(CalculatorEnv):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.action_space = gymnasium.spaces.Text(100)

    assert "does not contain every text" in faults(Ascii)["warning", "text"][0]


@pytest.mark.parametrize(
    ("stops", "level", "message"),
    [
        (None, "error", "None is not a tuple of non-empty strings"),
        ("</calc>", "error", "read as its letters"),
        (("</calc>", ""), "error", "is not a tuple of non-empty strings"),
        ((3,), "error", "is not a tuple of non-empty strings"),
    ],
)
def test_stop_strings(stops, level, message):
    class Stopping(CalculatorEnv):
        stop_strings = stops

    assert message in faults(Stopping)[level, "stop strings"][0]


def test_no_stop_strings_at_all():
    class Unstoppable(CalculatorEnv):
        @property
        def stop_strings(self):
            raise AttributeError

    assert faults(Unstoppable) == {("warning", "stop strings"): ["there are none"]}


def test_without_example_actions_the_stop_strings_suggest_some():
    class Bare(CalculatorEnv):
        example_actions = ()

    found = faults(Bare)
    assert "there are no example_actions" in found["warning", "stop strings"][0]
    assert set(found) == {("warning", "stop strings")}


def test_example_actions_that_do_not_end_and_an_episode_that_never_does():
    class Endless(CalculatorEnv):
        example_actions = ("<calc> 1 </calc>",)

        def step(self, action):
            self._turn = 0
            return super().step(action)

    found = faults(Endless)
    assert "do not end the episode" in found["warning", "episode"][0]
    assert "goes on after 50 useless actions" in found["warning", "end"][0]


def test_chance_that_ignores_the_seed():
    rng = np.random.default_rng()

    def random_step(env, row):
        text = str(rng.integers(1 << 60))
        return (text, *row[1:-1], {"observation_parts": {"open": "", "body": text, "close": ""}})

    found = faults(changed(step=random_step))
    assert "played again" in found["warning", "determinism"][0]


def test_state_that_environments_share():
    class Sharing(CalculatorEnv):
        turn_of_all = 0

        def reset(self, *, seed=None, options=None):
            type(self).turn_of_all = 0
            return super().reset(seed=seed, options=options)

        def step(self, action):
            type(self).turn_of_all += 1
            row = super().step(action)
            return (*row[:-1], {**row[-1], "n": self.turn_of_all})

    assert "one environment changes what another answers" in faults(Sharing)["error", "independence"][0]


def test_tasks_of_another_form_are_warned_of():
    class Own(CalculatorEnv):
        def reset(self, *, seed=None, options=None):
            if options and "level" not in options:
                raise envs.errors.TaskError("give a level")
            return super().reset(seed=seed)

    assert "give a level" in faults(Own)["warning", "tasks"][0]


def test_half_an_async_environment_and_one_that_answers_otherwise():
    class Half(CalculatorEnv):
        async def astep(self, action):
            return self.step(action)

    assert faults(Half)["error", "async"] == ["there is astep alone"]

    class Other(Half):
        async def areset(self, *, seed=None, options=None):
            await asyncio.sleep(0)
            return self.reset(seed=seed, options=options)

        async def astep(self, action):
            return self.step(action.upper())

    assert faults(Other)["error", "async"] == ["astep answers otherwise than step"]


def test_an_astep_that_blocks_is_refused():
    class Blocks(CalculatorEnv):
        async def areset(self, *, seed=None, options=None):
            return self.reset(seed=seed, options=options)

        async def astep(self, action):
            time.sleep(0.6)
            return self.step(action)

    assert "astep blocks: other episodes stood still" in faults(Blocks)["error", "async"][0]


def test_text_that_breaks_it():
    def encoding(env, row):
        env.action.encode()  # a lone surrogate cannot be encoded
        return row

    found = faults(changed(step=encoding))
    assert "UnicodeEncodeError" in found["error", "hostile actions"][0]

    class Formatting(CalculatorEnv):
        def reset(self, *, seed=None, options=None):
            observation, info = super().reset(seed=seed, options=options)
            (options or {"question": ""})["question"].format(question="q", text="t")
            return observation, info

    assert "raised IndexError" in faults(Formatting)["error", "hostile questions"][0]


def test_a_reward_that_reads_the_tools_output():
    class Reading(CalculatorEnv):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            self.seen = getattr(self, "seen", "") + action + observation
            return observation, max(reward, float(self._golden[0] in self.seen)), *rest

    messages = faults(Reading)["error", "hostile tool"]
    assert any("changes the reward" in m and GOLD in m for m in messages)


def test_a_tool_that_can_leave_its_frame():
    class Raw(CalculatorEnv):
        def step(self, action):
            row = super().step(action)
            parts = row[-1].get("observation_parts")
            if parts is not None and "<calc>" in action:
                parts["body"] = self._tools["calc"]("1")
                return ("".join(parts.values()), *row[1:])
            return row

    assert any("a tool can say '</calc>'" in m for m in faults(Raw)["error", "hostile tool"])


def test_a_tool_that_the_checker_cannot_replace():
    class Built(CalculatorEnv):
        def __init__(self):
            super().__init__()

    assert "no parameter tool or retriever" in faults(Built)["warning", "hostile tool"][0]

    class Idle(CalculatorEnv):
        example_actions = ("<answer> 396 </answer>",)

    assert "does not call the tool" in faults(Idle)["warning", "hostile tool"][0]


def test_a_broken_tool_that_is_hidden():
    class Hiding(CalculatorEnv):
        def step(self, action):
            try:
                return super().step(action)
            except envs.errors.ToolFailure:
                return "", 0.0, True, False, {}

    assert faults(Hiding) == {("error", "tool failure"): ["a broken tool is hidden"]}


def test_findings_are_read_aloud():
    assert str(Finding("error", "text", "no", "do")) == "error   text: no; do"
    assert str(Finding("ok", "text", "fine")) == "ok      text: fine"


# --------------------------------------------------------------------------------------------------------------- list


def test_the_list_of_environments():
    listed = {e.id: e for e in envs.list_envs()}
    assert set(BUILTIN["environment"]) <= set(listed) and not any("CartPole" in name for name in listed)
    search = listed["agentrl/Search-v0"]
    assert search.entry_point == "agentrl.envs.search:SearchEnv" and search.summary.startswith(
        "Questions answered by searching"
    )
    assert search.parameters["topk"] == "3" and search.parameters["retriever"] == "None"
    assert all(len(default) <= 60 for e in listed.values() for default in e.parameters.values())


def test_plug_ins_are_listed_also_where_they_cannot_be_imported():
    gymnasium.register("test/Own-v0", entry_point=CalculatorEnv)
    gymnasium.register("test/Gone-v0", entry_point="no_such_module:Env")
    try:
        listed = {e.id: e for e in envs.list_envs()}
        assert listed["test/Own-v0"].entry_point == "agentrl.envs.calculator:CalculatorEnv"
        assert "ModuleNotFoundError" in listed["test/Gone-v0"].summary
    finally:
        del gymnasium.registry["test/Own-v0"], gymnasium.registry["test/Gone-v0"]


def test_the_package_is_imported_by_the_name_of_an_environment():
    code = "import gymnasium; print(gymnasium.make('agentrl.envs:agentrl/Search-v0').unwrapped.topk)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_registering_twice_is_registering_once():
    spec = gymnasium.registry["agentrl/Search-v0"]
    envs.register_envs()
    assert gymnasium.registry["agentrl/Search-v0"] is spec
