"""The pages that the documentation site is built from: `python scripts/docs_site.py OUT` (`make docs` calls it).

OUT gets docs/ as it is; the README as its first page and CONTRIBUTING.md, with links that hold there; and a reference
made from the code: every key of the configuration, every command's help, the public functions and classes of the
packages that people import (mkdocstrings reads their docstrings).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from agentrl.config.describe import Key, keys

ROOT = Path(__file__).parents[1]
PYTHON = {  # heading -> modules whose public names people import
    "Watch from your own loop": ["agentrl.monitors", "agentrl.integrations.trl"],
    "Tools and environments": [
        "agentrl.envs.tools",
        "agentrl.envs.search",
        "agentrl.envs.scoring",
        "agentrl.envs.errors",
    ],
    "Retriever": ["agentrl.retriever.client", "agentrl.retriever.base"],
    "Algorithms": ["agentrl.algorithms"],
    "Plug-ins": ["agentrl.plugins"],
    "Run directories": ["agentrl.runs.read"],
    "Types and errors": ["agentrl.types", "agentrl.errors"],
}


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out)
    (out / "index.md").write_text(at_home((ROOT / "README.md").read_text("utf-8")), "utf-8")
    (out / "contributing.md").write_text(at_home((ROOT / "CONTRIBUTING.md").read_text("utf-8")), "utf-8")
    reference = out / "reference"
    reference.mkdir()
    (reference / "config.md").write_text(config_page(), "utf-8")
    (reference / "commands.md").write_text(commands_page(), "utf-8")
    (reference / "python.md").write_text(python_page(), "utf-8")


def at_home(text: str) -> str:
    """A page of the repository's top level with its links as they are beside the pages of docs/."""
    text = re.sub(r"\]\(docs/", "](", text).replace("](CONTRIBUTING.md", "](contributing.md")
    return re.sub(r'(src|srcset)="docs/', r'\1="', text)


def config_page() -> str:
    """All keys of the configuration, a table a part."""
    return "\n".join(["# Configuration", "", "`agentrl config explain KEY` prints the same.", "", *_parts(), ""])


def _parts() -> Iterator[str]:
    every = list(keys())
    parts = [Key("", "", ..., "Keys of the whole run."), *(k for k in every if k.is_part)]
    for part in parts:
        own = [k for k in every if not k.is_part and k.name.rpartition(".")[0] == part.name]
        if not own:
            continue
        yield from ([f"## {part.name}", ""] if part.name else [])
        yield from (f"{part.meaning}{' Default: null.' if part.default is None else ''}", "")
        yield from ("| key | default | values | |", "|---|---|---|---|")
        yield from (f"| `{k.name}` | {_cell(k.shown)} | {_cell(k.values)} | {_cell(k.meaning)} |" for k in own)
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def commands_page() -> str:
    """The help of every command and of the commands below it."""
    os.environ["COLUMNS"], os.environ["NO_COLOR"] = "100", "1"
    from agentrl.cli import build_parser

    return "\n".join(["# Commands", "", *_helps(build_parser(), 2)])


def _helps(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield from (f"{'#' * level} {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", "")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):  # an alias is the same parser
                yield from _helps(below, min(level + 1, 4))


def python_page() -> str:
    """What mkdocstrings fills in from the docstrings."""
    lines = ["# Python", ""]
    for heading, modules in PYTHON.items():
        lines += [f"## {heading}", "", *(f"::: {module}\n" for module in modules)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
