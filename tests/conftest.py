"""What several tests share and what takes seconds to make."""

import signal
import threading
from pathlib import Path

import pytest
from hypothesis import settings

from agentrl.config import WarmStartConfig
from tests.small import small_config

settings.register_profile("agentrl", deadline=None)  # no test depends on how busy the machine is
settings.load_profile("agentrl")
if threading.current_thread() is threading.main_thread():
    # A shell starts background jobs with Ctrl-C ignored, and what a test starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def ctrl_c_is_as_it_was():
    """A handler that one test leaves behind would decide what Ctrl-C does in another."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="session")
def warm_model(tmp_path_factory) -> Path:
    """A model of the small world in Hugging Face format that searches, and answers about half of the questions."""
    from agentrl.train.build import build_job
    from agentrl.train.warmstart import warm_start

    folder = tmp_path_factory.mktemp("warm")
    job = build_job(small_config(folder), folder)
    practice = WarmStartConfig(lookup_steps=0, demonstrations=1500, epochs=2, lr=1e-2, context_weight=0.0, threads=1)
    warm_start(job.engine, job.world, practice, seed=0, say=lambda line: None)
    job.engine.save_model(folder / "model")
    return folder / "model"
