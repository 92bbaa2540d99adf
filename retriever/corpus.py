"""Passages, and a streaming reader of corpus files.

A corpus is JSONL (plain or gzipped, with or without a byte order mark) or Parquet, one passage a row, in one of the
shapes `{"id" or "_id": "7", "contents": "\\"Title\\"\\ntext"}` and `{"id" or "_id": "7", "title": "Title" or null,
"text": "text"}`; other columns are ignored. Duplicate ids are found when the index is built (`ids`).
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
SHOWN_BAD = 5
"""How many skipped rows are named."""

_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_JUDGED_FROM = 1_000  # rows: from here a share of bad ones beyond the bound stops the reading at once
_ROWS_AT_ONCE = 1_024  # of a Parquet file


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of retrieval. `title` may be empty; `given` holds the contents where title and text do not make them."""

    id: str
    title: str
    text: str
    given: str | None = None

    @property
    def contents(self) -> str:
        """The contents exactly as the corpus has them; made from title and text, as Search-R1 does, where it has none.

        That is the title in double quotes, a line break and the text, or the text alone where there is no title.
        """
        if self.given is not None:
            return self.given
        return f'"{self.title}"\n{self.text}' if self.title else self.text


def json_kind(value: object) -> str:
    """What JSON calls the type of a decoded value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def parse_passage(row: object) -> Passage:
    """A decoded row as a `Passage`; `ValueError` with the reason where it has neither of the two shapes.

    A row with `title`, `text` and `contents` keeps all three. `contents` whose first line is a quoted title are split
    there; others become the text of a passage without a title. Other keys are ignored.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected a JSON object, found {json_kind(row)}")
    given = None
    if "title" in row and "text" in row:
        title = "" if row["title"] is None else _string(row, "title").replace("\r", " ").replace("\n", " ")
        text = _string(row, "text")
        given = row.get("contents")
        if given is not None and not isinstance(given, str):
            raise ValueError(f'"contents" must be a string, not {json_kind(given)}')
    else:
        title, text = split_contents(_string(row, "contents"))
    if not title.strip() and not text.strip():
        raise ValueError("the passage is empty")
    passage = Passage(_id(row), title, text)
    return passage if given is None or given == passage.contents else Passage(passage.id, title, text, given)


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of contents; the title is empty where the first line is not a title in double quotes."""
    first, line_break, rest = contents.partition("\n")
    if line_break and len(first) > 2 and first[0] == first[-1] == '"':
        return first[1:-1], rest
    return "", contents


class CorpusReader:
    """Iterates over the passages of one file without holding it in memory.

    Iterating raises `CorpusError` at the first malformed row, or with `skip_bad`, the largest share of rows that may
    be malformed, once more than that share is. Blank lines are skipped; lines and Parquet's rows count from 1.
    """

    def __init__(
        self, path: str | Path, *, skip_bad: float | None = None, shard: tuple[int, int] | None = None
    ) -> None:
        """`shard` (i, n): only every n-th row, from row i on, counting from 1."""
        self.path = Path(path)
        self.line = 0  # of the passage that was read last
        self.bad = 0  # rows skipped
        self.duplicates = 0  # ids that came again and were kept, with `skip_bad`
        self.first_bad: list[str] = []  # the reasons of the first ones, each with its line
        self.skip_bad, self.shard = skip_bad, shard or (1, 1)
        self._raw: BinaryIO | None = None
        self._rows = 0  # of a Parquet file being read
        if not self.path.is_file():
            raise CorpusError(f"{self.path}: no such file; give a corpus as JSONL (plain or .gz) or Parquet: {REMEDY}")
        self._size = max(1, self.path.stat().st_size)

    def __iter__(self) -> Iterator[Passage]:
        return self.read()

    def read(self, after_line: int = 0) -> Iterator[Passage]:
        """The passages beyond line `after_line`, which an earlier reading got to."""
        self.line, self.bad, self.first_bad = 0, 0, []
        try:
            with self.path.open("rb") as raw:
                self._raw = raw
                start = raw.read(4)
                raw.seek(0)
                rows = self._parquet(after_line) if start == _PARQUET else self._lines(raw, start, after_line)
                yield from rows
            self._judge(final=True)
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(
                f"{self.path}: cannot be read past line {self.line} ({error}); fetch or unpack it anew"
            ) from error
        finally:
            self._raw, self._rows = None, 0

    @property
    def fraction_read(self) -> float:
        """Share of the file consumed by the running iteration, in [0, 1]; 0 when none runs."""
        if self._rows:
            return min(1.0, self.line / self._rows)
        return min(1.0, self._raw.tell() / self._size) if self._raw and not self._raw.closed else 0.0

    def _lines(self, raw: BinaryIO, start: bytes, after_line: int) -> Iterator[Passage]:
        lines = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if start.startswith(_GZIP) else raw
        for number, line in enumerate(lines, start=1):
            self.line = number
            if number == 1:
                line = line.removeprefix(_BOM)
            if number <= after_line or not self._ours(number) or line.isspace() or not line:
                continue
            passage = self._passage(line, number)
            if passage is not None:
                yield passage

    def _parquet(self, after_line: int) -> Iterator[Passage]:
        import pyarrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(self.path, memory_map=True)
            self._rows = file.metadata.num_rows
            columns = [c for c in ("id", "_id", "title", "text", "contents") if c in file.schema_arrow.names]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                rows = batch.to_pylist()
                for row in rows:
                    self.line += 1
                    if self.line <= after_line or not self._ours(self.line):
                        continue
                    if (passage := self._row(row, self.line)) is not None:
                        yield passage
        except pyarrow.ArrowException as error:
            raise CorpusError(f"{self.path}: is not a whole Parquet file ({error}); fetch it anew") from error

    def _ours(self, number: int) -> bool:
        first, every = self.shard
        return number % every == first % every

    def _row(self, row: object, number: int) -> Passage | None:
        try:
            return checked(parse_passage(row))
        except ValueError as error:
            self._refuse(f"{self.path}, row {number}: {error}; {REMEDY}")
            return None

    def _passage(self, line: bytes, number: int) -> Passage | None:
        try:
            return checked(parse_passage(json.loads(line.decode("utf-8"))))
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 (byte {error.start})"
        except json.JSONDecodeError as error:
            reason = f"not JSON ({error.msg} at column {error.colno})"
        except RecursionError:
            reason = "nested too deeply"
        except ValueError as error:
            reason = str(error)
        start = line[:80].decode("utf-8", "replace").strip()
        self._refuse(f"{self.path}, line {number}: {reason}; {REMEDY}. The line begins {start!r}")
        return None

    def _refuse(self, message: str) -> None:
        if self.skip_bad is None:
            raise CorpusError(message)
        self.bad += 1
        if len(self.first_bad) < SHOWN_BAD:
            self.first_bad.append(message)
        self._judge()

    def _judge(self, *, final: bool = False) -> None:
        if self.skip_bad is None or not self.bad or not (final or self.line >= _JUDGED_FROM):
            return
        if self.bad > self.skip_bad * self.line:
            raise CorpusError(
                f"{self.path}: {self.bad} of the first {self.line} rows are malformed, more than the share "
                f"{self.skip_bad:g} that may be skipped (--skip-bad). The first: {self.first_bad[0]}"
            )


def checked(passage: Passage) -> Passage:
    """`passage`; `ValueError` where it holds a lone surrogate, which no text file and no answer can."""
    for value in (passage.id, passage.title, passage.text, passage.given or ""):
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"a lone surrogate, \\u{ord(value[error.start]):04x}, is not text") from None
    return passage


def _id(row: Mapping[str, Any]) -> str:
    key = "_id" if "_id" in row and "id" not in row else "id"
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    raise ValueError(
        f'"{key}" is missing' if key not in row else f'"{key}" must be a string or an integer, not {value!r:.40}'
    )


def _string(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, str):
        return value
    raise ValueError(f'"{key}" is missing' if key not in row else f'"{key}" must be a string, not {json_kind(value)}')
