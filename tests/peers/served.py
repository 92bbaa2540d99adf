"""The project's search server beside another Python's test."""

import os
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = os.environ.get("AGENTRL_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


@contextmanager
def served(*command):
    """The url that `python -m ...` of the project's environment prints; it ends when its standard input does."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [PYTHON, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    try:
        match = re.search(r"http://[^\s,]+", process.stdout.readline())
        assert match, "the server did not start"
        yield match.group()
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def search_server():
    """The small index of the tests."""
    return served("tests.peers.serve")
