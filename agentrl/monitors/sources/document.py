"""A JSON file that is one document: a trainer's `log_history` under any name, a list or dictionary of rows, columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentrl.monitors.sources.base import LIKELY, NO, SURE, Look, Row, Source

NAME = "trainer_state.json"
_HISTORY = re.compile(rb'"log_history"\s*:')


class Document(Source):
    """Read again whenever it was rewritten; rows that were there before are not given again."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(_newest(path), NAME if _newest(path).name == NAME else "JSON")
        self._stamp: tuple[int, int] | None = None
        self._seen = 0

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By its name, in a folder and its newest checkpoint too; or by what the file begins with."""
        if look.is_dir:
            return LIKELY if _newest(look.path) != look.path else NO
        start = look.text.lstrip()
        if look.path.name == NAME or (start[:1] == "{" and look.has(_HISTORY)):
            return SURE
        pretty = start[:1] == "{" and start.partition("\n")[0].strip() in ("{", "{}") and len(start) > 2
        return SURE if pretty or re.match(r"\[\s*[{\[\]]", start) else NO

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        try:
            stat = self.path.stat()
            if (stat.st_mtime_ns, stat.st_size) == self._stamp:
                return []
            rows = list(_rows(json.loads(self.path.read_bytes())))
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError):
            self.problem("the file is not a complete JSON document (yet)")
            return []
        self._stamp = (stat.st_mtime_ns, stat.st_size)
        if len(rows) < self._seen:
            self._seen = 0
        new, self._seen = rows[self._seen :], len(rows)
        return [row for one in new if (row := self.row(one, _key_step(one))) is not None]


def _newest(path: Path) -> Path:
    """The file in a folder: its own, or that of the checkpoint with the highest number."""
    if not path.is_dir():
        return path
    if (path / NAME).is_file():
        return path / NAME
    found = list(path.glob(f"checkpoint-*/{NAME}"))
    return max(found, key=lambda p: (_number(p.parent.name), p.stat().st_mtime), default=path)


def _number(name: str) -> int:
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else -1


def _rows(tree: Any) -> Iterator[dict[str, Any]]:
    """Rows of a `log_history`, a list, a dictionary of rows by step, or a dictionary of columns."""
    if isinstance(tree, Mapping) and isinstance(tree.get("log_history"), list):
        tree = tree["log_history"]
    if isinstance(tree, list):
        yield from (row for row in tree if isinstance(row, dict))
    elif isinstance(tree, Mapping):
        columns = {k: v for k, v in tree.items() if isinstance(v, list)}
        tabular = columns and not any(isinstance(x, dict) for v in columns.values() for x in v)
        rows = {k: v for k, v in tree.items() if isinstance(v, dict)}
        if tabular and len({len(v) for v in columns.values()}) == 1:
            yield from (dict(zip(columns, values)) for values in zip(*columns.values()))
        elif rows and all(k.lstrip("-").isdigit() for k in rows):
            yield from ({"__key": int(k), **v} for k, v in sorted(rows.items(), key=lambda i: int(i[0])))
        else:
            for value in (*columns.values(), *rows.values()):
                if found := list(_rows(value)):
                    yield from found
                    return


def _key_step(row: dict[str, Any]) -> int | None:
    return row.pop("__key", None)
