"""Methods are changes of the training config, and nothing else."""

import pytest

from agentrl.config import AlgorithmConfig
from agentrl.errors import ConfigError
from agentrl.lab.methods import CHANGES, known_methods, method_config


def test_a_method_replaces_the_methods_of_the_base_and_keeps_the_rest():
    base = AlgorithmConfig.model_validate(
        {"name": "grpo_k", "k": 4, "nthr": {"enabled": True, "beta": 0.5}, "loss": {"clip_high": 0.3}}
    )
    plain = method_config(base, "grpo")
    assert (plain.name, plain.k, plain.nthr.enabled, plain.loss.llds.enabled) == ("grpo", 1, False, False)
    assert plain.loss.clip_high == 0.3
    soft = method_config(base, "nthr")
    assert soft.nthr.enabled and soft.nthr.beta == 0.5 and soft.nthr.baseline is None
    assert method_config(soft, "random").nthr.baseline == "random"
    assert method_config(base, "llds").loss.llds.enabled and base.k == 4


@pytest.mark.parametrize("method", CHANGES)
def test_every_method_is_a_valid_config_of_its_own(method):
    one = method_config(AlgorithmConfig(), method)
    others = [method_config(AlgorithmConfig(), m) for m in CHANGES if m != method]
    assert one not in others
    assert method_config(method_config(AlgorithmConfig(), "nthr+llds"), method) == one  # whatever the base had on


def test_names_are_split_once_each_and_mistakes_explained():
    assert known_methods("grpo, nthr,grpo,") == ["grpo", "nthr"]
    with pytest.raises(ConfigError, match=r"'ntrh' is unknown.*did you mean 'nthr'.*pos_only"):
        known_methods("grpo,ntrh")
    with pytest.raises(ConfigError, match="no method is named"):
        known_methods(" , ")
