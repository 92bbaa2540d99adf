"""Rows without advantage are left out of an update only where nothing else gives them a gradient."""

import pytest
import torch

from agentrl.config import LossConfig
from agentrl.train.build import build_job
from tests.small import small_config

SILENT = {"kl_coef": 0.0, "entropy_coef": 0.0, "nll_coef": 0.0}


@pytest.mark.parametrize(
    ("loss", "learned"),
    [
        ({"llds": {"enabled": True}}, True),
        ({"kl_coef": 0.1}, True),
        ({"entropy_coef": 0.1}, True),
        ({"nll_coef": 0.1}, True),
        ({}, False),
    ],
)
def test_a_row_without_advantage_is_learned_from(tmp_path, random_rows, loss, learned):
    """Two rows without advantage: the shorter has nothing to learn, so that the gradient is the longer one's."""
    config = small_config(tmp_path)
    engine = build_job(config, tmp_path, say=lambda line: None).engine
    batch = random_rows
    now = engine.score(batch).logprobs
    old = now.clone()
    old[0] -= batch.action_mask[0] * 0.5  # the shorter one has become likelier: LLDS leaves it alone
    old[1] += batch.action_mask[1] * 0.5  # the longer one has become less likely: LLDS pulls it back
    reference = now.clone()
    reference[1] += batch.action_mask[1] * 0.5
    done = engine.update(
        batch, torch.zeros_like(old), old, loss=LossConfig(**{**SILENT, **loss}), reference_logprobs=reference
    )
    assert (done["grad_norm"] > 1e-3) is learned


@pytest.fixture
def random_rows():
    """Rows of 4 and 9 tokens, the last two and six of them sampled; both correct, of one group."""
    from agentrl.batch import pack
    from agentrl.types import Trajectory, Turn

    def row(name, prompt, action):
        turn = Turn(prompt, action, [-1.0] * len(action), "x", "", 1.0, "stop")
        return Trajectory(name, "g", "e", 0, (turn,), 1.0, True, True, False, None)

    return pack([row("short", [5, 6], [7, 8]), row("long", [5, 6, 7], [9, 10, 11, 12, 13, 14])])
