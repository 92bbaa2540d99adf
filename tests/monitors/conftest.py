"""A receiver of webhooks, and a home for what `watch` remembers."""

from __future__ import annotations

import pytest

from tests.receiver import receiver as receiver


@pytest.fixture(autouse=True)
def _own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what this user's own watches remember."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
