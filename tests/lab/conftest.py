"""The small world's job and some of its mixed groups, made once."""

import pytest

from agentrl.lab.groups import mixed_groups
from agentrl.train.build import build_job
from tests.small import small_config


@pytest.fixture(scope="session")
def lab(warm_model, tmp_path_factory):
    """A job of the warm model, and five mixed groups."""
    folder = tmp_path_factory.mktemp("lab")
    job = build_job(small_config(folder, warm_model), folder)
    return job, mixed_groups(job, 5, seed=0, say=lambda line: None)
