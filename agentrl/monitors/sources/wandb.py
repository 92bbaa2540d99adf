"""W&B offline runs."""

from __future__ import annotations

import os
from pathlib import Path

from agentrl.monitors import wire
from agentrl.monitors.sources.base import MAYBE, NO, SURE, Look, Row, Source

WANDB_CHUNK = 1 << 26  # bytes read at once, a multiple of the block
PLACES: tuple[str, ...] = ("*.wandb", "latest-run/*.wandb", "wandb/latest-run/*.wandb", "offline-run-*/*.wandb")
PLACES += ("wandb/run-*/*.wandb", "run-*/*.wandb")  # online, and without latest-run


class Wandb(Source):
    """A `.wandb` file as W&B writes it beside (or instead of) uploading. Evaluation keys keep their names."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(_newest(path) or path, "W&B")
        self._offset = wire.WANDB_START

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By name or first bytes; in a folder by where W&B puts its files."""
        if look.is_dir:
            return MAYBE if _newest(look.path) is not None else NO
        return SURE if look.path.suffix == ".wandb" or look.head.startswith(b":W&B") else NO

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        while True:
            records, more = self._read()
            rows = [row for record in records if (row := self._row(record)) is not None]
            if rows or not more:
                return rows

    def _read(self) -> tuple[list[bytes], bool]:
        """The next whole records, and whether the file goes on behind the bytes that were read."""
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self.problem("the file was truncated; reading it from the start")
                    self._offset = wire.WANDB_START
                base = self._offset - self._offset % wire.BLOCK
                file.seek(base)
                data = file.read(WANDB_CHUNK)
        except FileNotFoundError:
            return [], False
        records, end = wire.leveldb_records(data, self._offset - base)
        full = len(data) == WANDB_CHUNK
        if full and not records:
            self.problem("a record is too long or the file is damaged; the rest is skipped")
            end = len(data)
        self._offset = base + end
        return records, full

    def _row(self, record: bytes) -> Row | None:
        try:
            history = wire.wandb_history(record)
        except ValueError:
            self.problem("record is not a W&B record")
            return None
        if history is None or not history[1]:
            return None
        own, values = history
        return self.row({k: v for k, v in values.items() if k != "_step"}, own)


def _newest(folder: Path) -> Path | None:
    """The file of the newest run in the first of the usual places that has one."""
    for pattern in PLACES:
        if files := sorted(folder.glob(pattern), key=lambda p: p.stat().st_mtime):
            return files[-1]
    return None
