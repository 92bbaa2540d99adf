"""Serve an index to another Python's test: prints the url, and ends when standard input does."""

import sys
import tempfile
from pathlib import Path

from agentrl.retriever.building import build_index
from agentrl.retriever.serving import Service, serve
from tests.retriever.helpers import PASSAGES

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        build_index(PASSAGES, Path(folder) / "index")
        serve(Path(folder) / "index", Service(port=0, follow_stdin=True), say=lambda line: print(line, flush=True))
        sys.exit(0)
