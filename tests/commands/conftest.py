"""One small finished run that the commands' tests read; copy it where a test writes."""

import pytest

from agentrl.train.start import train_run
from tests.small import small_config


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A run of two steps with an evaluation after each and a checkpoint of steps 1 and 2."""
    config = small_config(
        tmp_path_factory.mktemp("runs"),
        eval={"questions": 6, "every": 1},
        log={"checkpoint_every": 1, "rollout_groups": -1},
    )
    return train_run(config, quiet=True).run_dir
