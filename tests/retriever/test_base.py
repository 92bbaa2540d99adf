import subprocess
import sys

import pytest

from agentrl.retriever.base import Searcher
from agentrl.retriever.building import build_index
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.errors import IndexOpenError
from agentrl.retriever.opening import OpenedIndex, open_searcher
from tests.retriever.helpers import PASSAGES, Fake


def test_a_folder_is_opened_once_and_anew_after_a_rebuild(tmp_path):
    out = tmp_path / "index"
    build_index(PASSAGES[:2], out)
    first = open_searcher(out)
    assert isinstance(first, OpenedIndex) and first.kind == "bm25"
    assert open_searcher(str(out)) is first
    build_index(PASSAGES, out, overwrite=True)
    assert len(open_searcher(out)) == 5 and len(first) == 2


def test_a_url_gives_the_shared_client():
    client = open_searcher("http://127.0.0.1:9")
    assert isinstance(client, RetrieverClient) and isinstance(client, Searcher)
    assert open_searcher("http://127.0.0.1:9") is client


def test_a_searcher_is_returned_as_it_is():
    fake = Fake()
    assert open_searcher(fake) is fake


def test_errors_say_how_to_build_one(tmp_path):
    with pytest.raises(IndexOpenError, match="build one with `agentrl retriever build CORPUS"):
        open_searcher(tmp_path / "none")
    with pytest.raises(IndexOpenError, match="no searcher: give a url"):
        open_searcher(42)


def test_nothing_heavy_is_imported():
    code = (
        "import sys\n"
        "from agentrl.retriever import batching, cli, client, server\n"
        "assert not {'torch', 'agentrl.config', 'numpy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys, agentrl.retriever.cli\nassert not {'tantivy', 'httpx', 'starlette', 'uvicorn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
