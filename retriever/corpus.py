"""Passages, and a streaming reader of corpus files.

A corpus is JSONL, plain or gzipped, one passage a line, in either of Search-R1's shapes:
`{"id": "7", "contents": "\\"Title\\"\\ntext"}` or `{"id": "7", "title": "Title", "text": "text"}`.
Ids need not be unique: checking 21 million of them would cost more memory than the index.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from agentrl.retriever.errors import CorpusError

REMEDY = 'write each line as {"id": ..., "contents": "\\"Title\\"\\ntext"} or {"id": ..., "title": ..., "text": ...}'


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of retrieval. `title` has no line breaks and may be empty."""

    id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Search-R1's rendering: the title in double quotes, a line break, the text."""
        return f'"{self.title}"\n{self.text}'


def json_kind(value: object) -> str:
    """What JSON calls the type of a decoded value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def parse_passage(row: object) -> Passage:
    """A decoded JSON row as a `Passage`; `ValueError` with the reason where it has neither of the two shapes.

    `title` and `text` win where `contents` is there as well. Contents whose first line is not a quoted title are kept
    whole as the text of a passage without a title. Other keys are ignored.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected a JSON object, found {json_kind(row)}")
    if "title" in row and "text" in row:
        title, text = _string(row, "title"), _string(row, "text")
        title = title.replace("\r", " ").replace("\n", " ")
    else:
        title, text = "", _string(row, "contents")
        first, line_break, rest = text.partition("\n")
        if line_break and len(first) >= 2 and first[0] == first[-1] == '"':
            title, text = first[1:-1], rest
    if not title.strip() and not text.strip():
        raise ValueError("the passage is empty")
    return Passage(_id(row), title, text)


class CorpusReader:
    """Iterates over the passages of one file without holding it in memory.

    Iterating raises `CorpusError` at the first malformed row. Blank lines are skipped; line numbers count from 1.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._raw: BinaryIO | None = None
        if not self.path.is_file():
            raise CorpusError(f"{self.path}: no such file; give a corpus as JSONL (.jsonl or .jsonl.gz): {REMEDY}")
        self._size = max(1, self.path.stat().st_size)

    def __iter__(self) -> Iterator[Passage]:
        number = 0
        try:
            with self.path.open("rb") as raw:
                self._raw = raw
                lines = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if self.path.suffix == ".gz" else raw
                for number, line in enumerate(lines, start=1):
                    if not line.isspace():
                        yield self._passage(line, number)
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(
                f"{self.path}: cannot be read past line {number} ({error}); fetch or unpack it anew"
            ) from error
        finally:
            self._raw = None

    @property
    def fraction_read(self) -> float:
        """Share of the file's bytes consumed by the running iteration, in [0, 1]; 0 when none runs."""
        return min(1.0, self._raw.tell() / self._size) if self._raw else 0.0

    def _passage(self, line: bytes, number: int) -> Passage:
        try:
            passage = parse_passage(json.loads(line.decode("utf-8")))
            for value in (passage.id, passage.title, passage.text):
                if not value.isascii():
                    value.encode("utf-8")  # a lone surrogate escape decodes, but is not text
            return passage
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 (byte {error.start})"
        except UnicodeEncodeError as error:
            reason = f"a lone surrogate, \\u{ord(error.object[error.start]):04x}, is not text"
        except json.JSONDecodeError as error:
            reason = f"not JSON ({error.msg} at column {error.colno})"
        except RecursionError:
            reason = "nested too deeply"
        except ValueError as error:
            reason = str(error)
        start = line[:80].decode("utf-8", "replace").strip()
        raise CorpusError(f"{self.path}, line {number}: {reason}; {REMEDY}. The line begins {start!r}")


def _id(row: Mapping[str, Any]) -> str:
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    raise ValueError(
        '"id" is missing' if "id" not in row else f'"id" must be a string or an integer, not {value!r:.40}'
    )


def _string(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, str):
        return value
    raise ValueError(f'"{key}" is missing' if key not in row else f'"{key}" must be a string, not {json_kind(value)}')
