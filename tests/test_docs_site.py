"""The pages of the documentation site that are made from the code."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from agentrl.commands import COMMANDS
from agentrl.config.describe import keys

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_has_a_row(site):
    page = site.config_page()
    assert [k.name for k in keys() if not k.is_part and f"| `{k.name}` |" not in page] == []
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)  # a | of a value would break the table


def test_every_command_has_its_help(site, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = site.commands_page()
    assert all(f"## agentrl {name}\n" in page for name in COMMANDS)
    assert "#### agentrl config explain" in page or "### agentrl config explain" in page


def test_links_of_the_readme_hold_beside_the_other_pages(site):
    page = site.at_home('[a](docs/watch.md#names) [b](CONTRIBUTING.md) <img src="docs/images/x.png">')
    assert page == '[a](watch.md#names) [b](contributing.md) <img src="images/x.png">'


def test_every_page_is_in_the_menu():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    named = {page for part in menu for pages in part.values() for page in pages}
    assert {p.name for p in (ROOT / "docs").glob("*.md")} <= named


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 1350
