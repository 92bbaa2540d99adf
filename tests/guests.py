"""Makes tests/plugins_package visible as `pip install` would, without pip."""

from __future__ import annotations

import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parent / "plugins_package"


def distribution(folder: Path, groups: dict[str, dict[str, str]] | None = None, name: str = "agentrl-guests") -> str:
    """Write the metadata of an installed package into `folder`, which is to stand on sys.path; the folder.

    `groups`: entry-point group -> name -> target; those of the package's own pyproject.toml by default.
    """
    if groups is None:
        groups = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return str(folder)
