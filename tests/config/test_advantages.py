"""The rows of advantages: each has a function, its traits are what the function does, and the docs have them all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agentrl import plugins
from agentrl.algorithms import advantages, surrogate_of
from agentrl.config import AlgorithmConfig
from agentrl.config.advantages import built_in

DOCS = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"
ROWS = built_in()


@pytest.mark.parametrize("name", ROWS)
def test_every_name_in_the_config_has_a_function_and_its_surrogate(name):
    k = 2 if ROWS[name].takes_k else 1
    assert AlgorithmConfig(name=name, k=k).advantage is ROWS[name]
    assert plugins.load(ROWS[name].function).__name__ == name
    assert surrogate_of(name).weight is not None and ROWS[name].source
    given = advantages(name, torch.tensor([1.0, 0, 0]), torch.zeros(3).long(), k=k)
    assert given[0] > 0


@pytest.mark.parametrize("name", ROWS)
def test_traits_are_what_the_function_does(name):
    row, k = ROWS[name], 2 if ROWS[name].takes_k else 1
    group = torch.zeros(4).long()
    binary = advantages(name, torch.tensor([1.0, 0, 0, 0]), group, k=k)
    assert row.penalises == bool((binary[1:] < 0).all())
    rewards, correct = torch.tensor([1.0, 0.2, 0.2, 0.0]), torch.tensor([True, False, False, False])
    with_format = advantages(name, rewards, group, k=k, correct=correct)
    assert row.counts_correct == torch.equal(with_format, binary)
    lowest = {"negative": with_format[1:] < 0, "reward": with_format == rewards, "zero": with_format[1:] == 0}
    assert row.incorrect == "negative" or bool(lowest[row.incorrect].all())
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0])
    if row.takes_k:
        assert not torch.equal(*(advantages(name, rewards, group, k=n) for n in (1, 3)))
    else:
        assert torch.equal(*(advantages(name, rewards, group, k=n) for n in (1, 3)))


def test_the_table_of_the_docs_has_the_same_rows():
    text = DOCS.read_text(encoding="utf-8").split("## `algorithm.name`")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(ROWS)


def test_a_config_is_checked_without_torch():
    code = (
        "import sys; from agentrl.config import RunConfig\n"
        "RunConfig.model_validate({'world': {}, 'algorithm': {'name': 'rloo_k', 'k': 2}})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
