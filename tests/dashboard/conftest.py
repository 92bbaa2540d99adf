"""A server of the dashboard in a process of its own, and a browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dashboard.runs import make_run


@contextmanager
def serving(runs: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """The address of `agentrl dashboard` over `runs`."""
    command = [sys.executable, "-m", "agentrl.cli", "dashboard", str(runs), "--port", "0", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("dashboard: http"), line + process.stdout.read()
        yield line.split()[1].rstrip("/")
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a collapsed run, a healthy one and one in a subfolder. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "collapse")
    make_run(root, "healthy", "grpo_lr5e-4_mb2_s0", every=50)
    make_run(root / "sweep", "llds", "mid_llds_lr7e-4_mb4x2_s0", steps=30, every=0, status="failed")
    return root


@pytest.fixture(scope="session")
def server(runs: Path) -> Iterator[str]:
    """The address of a server over `runs`."""
    with serving(runs) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    """A browser; the test is skipped where there is none. Per module: its event loop runs until it is closed."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser tests need playwright (pip install '.[dev]')"
    )
    path = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if path is None:
        pytest.skip("the browser tests need Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium) -> Iterator[object]:
    """A fresh page; a script error, or a request to anywhere but this machine, fails the test."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(20_000)  # the machine may be busy
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("console", lambda m: None if m.type != "error" or LOST.search(m.text) else problems.append(m.text))
    page.on("request", lambda r: None if _local(r.url) else problems.append(f"request to {r.url}"))
    page.problems = problems
    yield page
    context.close()
    assert not problems, problems


LOST = re.compile(r"net::ERR_(CONNECTION|INCOMPLETE|EMPTY)")  # the test has stopped its server


def _local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:", "about:"))
