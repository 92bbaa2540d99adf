"""`agentrl dashboard`: the address it prints and opens. The server itself does not run here."""

import re
import webbrowser

import pytest
import uvicorn

from agentrl.cli import main


@pytest.fixture
def opened(monkeypatch):
    """Addresses that were opened in a browser."""
    out: list[str] = []
    monkeypatch.setattr(webbrowser, "open", out.append)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: [s.close() for s in sockets])
    return out


@pytest.mark.parametrize(("run", "page"), [("", ""), ("collapse", "run?run=collapse")])
def test_the_page_that_is_printed_is_opened(runs, opened, capsys, run, page):
    assert main(["dashboard", str(runs / run), "--port", "0", "--open"]) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/" + re.escape(page), opened[0]) and len(opened) == 1
    assert printed == f"dashboard: {opened[0]} over {runs.resolve() if run else runs} (Ctrl-C ends it)\n"


def test_a_folder_whose_name_looks_like_the_sentence(tmp_path, opened, capsys):
    folder = tmp_path / "x" / " over http:"
    (folder / "a b").mkdir(parents=True)
    (folder / "a b" / "config.yaml").write_text("name: a\n")
    assert main(["dashboard", str(folder / "a b"), "--port", "0", "--open"]) == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/run\?run=a%20b", opened[0])
    assert capsys.readouterr().out.startswith(f"dashboard: {opened[0]} over {folder} (")


def test_nothing_is_opened_unasked_and_a_token_is_explained_where_others_connect(runs, opened, capsys, monkeypatch):
    monkeypatch.setenv("AGENTRL_DASHBOARD_TOKEN", "a-token-of-some-length")
    assert main(["dashboard", str(runs), "--port", "0", "--host", "0.0.0.0"]) == 0
    address, once = capsys.readouterr().out.splitlines()
    assert address.startswith("dashboard: http://0.0.0.0:") and not opened
    assert "/?token=" in once and "AGENTRL_DASHBOARD_TOKEN" in once and "a-token" not in once
