"""Every key of the configuration says what it means, and can be asked for."""

import pytest

from agentrl.cli import main
from agentrl.config import RunConfig
from agentrl.config.describe import explain, keys
from agentrl.config.files import value_at
from agentrl.errors import ConfigError

KEYS = list(keys())


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_and_every_part_has_a_description(key):
    assert len(key.meaning) > 2 and key.meaning == key.meaning.strip()


def test_names_and_defaults_are_those_of_a_config():
    config = RunConfig(world={})
    whole = {k.name for k in KEYS if k.is_part and k.default is not None}
    checked = 0
    for key in KEYS:
        if not key.is_part and "[]" not in key.name and key.name.rpartition(".")[0] in {"", *whole}:
            assert value_at(config, key.name) == key.default
            checked += 1
    assert checked > 100


def test_values_name_types_choices_and_bounds():
    values = {k.name: k.values for k in KEYS}
    assert values["optim.lr"] == "number, above 0"
    assert values["rollout.style"] == "tag | chat"
    assert values["warm_start.held_out"] == "number, at least 0, at most 1"
    assert values["rollout.stop"] == "list of text"
    assert values["model.revision"] == "text or null"


def test_a_part_brings_its_keys_and_another_name_the_nearest():
    assert [k.name for k in explain("optim")][:2] == ["optim", "optim.lr"]
    assert [k.name for k in explain("optim.lr")] == ["optim.lr"]
    with pytest.raises(ConfigError, match=r"there is warm_start\.lr, optim\.lr"):
        explain("lr")
    with pytest.raises(ConfigError, match=r"did you mean .rollout\.temperature"):
        explain("rollout.temprature")


def test_the_command_prints_name_default_values_and_meaning(capsys):
    assert main(["config", "explain", "optim.betas"]) == 0
    first, meaning = capsys.readouterr().out.splitlines()
    assert first.endswith("optim.betas = [0.9, 0.999]    list of 2: number, number") and "moments" in meaning
    assert main(["config", "explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > len(KEYS)
    assert main(["config", "explain", "rollout.temprature"]) == 2
    assert "did you mean" in capsys.readouterr().err
