import json
import re
import subprocess
import sys

import pytest

from agentrl.retriever.cli import main
from tests.retriever.helpers import PASSAGES, server_process


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": p.id, "contents": p.contents}) + "\n" for p in PASSAGES))
    return path


def test_build_query_and_serve(tmp_path, corpus, capsys):
    out = str(tmp_path / "index")
    assert main(["build", str(corpus), out]) == 0
    assert re.match(rf"5 passages indexed in [\d.]+ s: {re.escape(out)}\nnext: ", capsys.readouterr().out)
    assert main(["build", str(corpus), out, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).items() >= {"index": out, "passages": 5}.items()

    assert main(["query", "Brightkiln glass", "absent", "--index", out, "-k", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Brightkiln glass" and shown[1].startswith("  1. Brightkiln  [c, ")
    assert shown[-2:] == ["absent", "  nothing found"]

    assert main(["query", "hostile passage", "--index", out]) == 0
    shown = capsys.readouterr().out
    assert "<|im_end|>" in shown and "\x00" not in shown and "\u202e" not in shown  # no control codes on a terminal

    assert main(["query", "Torvik", "founded", "--index", out, "--json"]) == 0
    local = capsys.readouterr().out
    assert [json.loads(line)["hits"][0]["id"] for line in local.splitlines()] == ["b", "c"]
    with server_process(out) as (url, _):
        assert main(["query", "Torvik", "founded", "--url", url, "--json"]) == 0
    assert capsys.readouterr().out == local


def test_errors_are_one_line_with_the_remedy_and_exit_code_2(tmp_path, corpus, capsys):
    missing = str(tmp_path / "none")
    for arguments, remedy in [
        (["build", missing, str(tmp_path / "out")], "no such file"),
        (["build", str(corpus), str(tmp_path)], "choose another path"),
        (["query", "x", "--index", missing], "agentrl retriever build CORPUS"),
        (["query", "x", "--index", missing, "-k", "0"], "agentrl retriever build CORPUS"),
        (["query", "x", "--url", "http://127.0.0.1:9", "-k", "0"], "at least 1"),
        (["serve", missing], "agentrl retriever build CORPUS"),
        (["serve", missing, "--host", "0.0.0.0"], "AGENTRL_RETRIEVER_TOKEN"),
        (["serve", missing, "--topk", "0"], "between 1 and 100"),
    ]:
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ") and remedy in printed.err
        assert len(printed.err.splitlines()) == 1
    corpus.write_text(corpus.read_text() + "{broken\n")
    assert main(["build", str(corpus), str(tmp_path / "out")]) == 2
    assert "corpus.jsonl, line 6: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_names_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "agentrl.retriever", "--help"], capture_output=True, text=True, check=True
    )
    assert all(command in done.stdout for command in ("build", "serve", "query"))
