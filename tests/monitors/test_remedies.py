import re

import pytest
from pydantic import BaseModel

from agentrl.config import RunConfig
from agentrl.monitors import Monitor
from agentrl.monitors.remedies import OPTIONS, in_terms_of
from tests.monitors.runs import records


def exists(key: str) -> bool:
    """Whether the run configuration has this dotted key."""
    part: type[BaseModel] = RunConfig
    *parents, last = key.split(".")
    for name in parents:
        field = part.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return False
        part = field.annotation
    return last in part.model_fields


@pytest.mark.parametrize("trainer", OPTIONS)
def test_the_options_are_ours(trainer):
    assert [key for key in OPTIONS[trainer] if not exists(key)] == []


def test_remedies_in_the_code_name_options_that_exist():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "agentrl" / "monitors"
    text = "".join((folder / name).read_text() for name in ("collapse.py", "health.py"))
    keys = set(re.findall(r"\b(?:optim|train|algorithm|rollout|model|retriever|env)\.[a-z_.]+[a-z_]", text))
    assert len(keys) > 12 and [key for key in keys if not exists(key.removesuffix(".kwargs"))] == []


def test_a_remedy_in_another_trainers_words():
    remedy = "Set algorithm.loss.llds.enabled=true, optim.lr halved."
    assert in_terms_of(None, remedy) == remedy
    assert in_terms_of("verl", remedy) == (
        "Set algorithm.loss.llds.enabled=true, optim.lr halved. In verl: optim.lr is actor_rollout_ref.actor.optim.lr; "
        "LLDS is a method of agentrl."
    )
    assert in_terms_of("TRL", "Read the rollouts.") == "Read the rollouts."


def test_alarms_carry_it():
    def change(step, metrics):
        metrics["clip_fraction"] = 0.07
        metrics["reward"] = 0.5 + 0.01 * (step % 3)

    monitor = Monitor()
    monitor.trainer = "SkyRL"
    alarm = next(a for r in records(30, change) for a in monitor.observe(r))
    assert "In SkyRL: optim.lr is trainer.policy.optimizer_config.lr" in alarm.remedy
    assert alarm.remedy.endswith("See docs/alarms.md#collapse.")
