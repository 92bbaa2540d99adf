"""The audit of a grader: what is sound passes, and each lenient grader is found by the tricks that it falls for."""

import unicodedata

import gymnasium
import pytest

from agentrl.envs.audit import check_audit, tricks
from agentrl.envs.checks import Subject
from agentrl.envs.scoring import exact_match


def audited(env, **kwargs):
    """The findings as (level, message)."""
    subject = Subject(lambda **more: gymnasium.make(env, disable_env_checker=True, **{**kwargs, **more}))
    return [(level, message) for level, message, _ in check_audit(subject)]


def contains(answer, golden_answers):
    return float(any(g in answer for g in golden_answers))


def echo(answer, golden_answers):
    return float(answer in golden_answers or (contains(answer, golden_answers) and answer.endswith("?")))


def nothing(answer, golden_answers):
    return float(exact_match(answer, golden_answers) or not answer.strip("? ") or answer == "the")


def look_alike(answer, golden_answers):
    same = str.maketrans("\u043e\u0456\u0395", "oiE")
    return float(unicodedata.normalize("NFKC", answer.translate(same)) in golden_answers)


def test_the_corpus_has_every_trick():
    kinds = {attack.kind for attack in tricks()}
    assert {"list of every answer", "echo of the question", "gold in a refusal", "nothing", "look-alike"} <= kinds
    assert len(tricks()) > 60


@pytest.mark.parametrize(
    "env", ["agentrl/Search-v0", "agentrl/Tools-v0", "agentrl/Calculator-v0", "agentrl/ToolCalls-v0"]
)
def test_the_shipped_graders_let_nothing_through(env):
    assert audited(env) == []
    assert audited(env, reward="exact_match") == []


def test_a_reward_for_the_form_is_no_fault():
    assert audited("agentrl/Search-v0", format_reward=0.2) == []


@pytest.mark.parametrize(
    ("reward", "kind"),
    [
        (contains, "list of every answer"),
        (contains, "gold in a refusal"),
        (echo, "echo of the question"),
        (nothing, "nothing"),
        (look_alike, "look-alike"),
        ("f1", "gold in a refusal"),
    ],
)
def test_a_lenient_grader_is_named_with_what_earned(reward, kind):
    found = audited("agentrl/Tools-v0", reward=reward)
    assert found and all(level == "error" for level, _ in found)
    assert kind in " ".join(message for _, message in found)
    assert "earns a reward where" in found[0][1]


def test_what_cannot_be_audited_says_so():
    [(level, message)] = audited("agentrl/Tools-v0", reward=lambda answer, golden: 0.0)
    assert level == "ok" and "not checked: the golden answer" in message
