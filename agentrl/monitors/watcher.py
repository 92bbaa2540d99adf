"""Follows a trainer's log with the monitors: what `agentrl watch` runs. No torch."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

from agentrl.errors import AgentRLError
from agentrl.monitors import Monitor, sinks
from agentrl.monitors.alarms import default_rules
from agentrl.monitors.signals import SignalMap, guess_mapping
from agentrl.monitors.sources import Row, Source, StepAssembler, open_source
from agentrl.monitors.thresholds import Thresholds, parse
from agentrl.types import Alarm, StepRecord

_EARLY = ("clip_fraction", "delta_correct")  # without either, the earliest evidence cannot be had


def watch(
    path: str,
    *,
    columns: list[str],
    run: str | None = None,
    as_json: bool = False,
    once: bool = False,
    every: float = 1.0,
    settle: float = 10.0,
    webhook: str | None = None,
    thresholds: Sequence[str] = (),
    rules: Sequence[str] = (),
    outputs: Sequence[str] = (),
    form: str | None = None,
) -> None:
    """Alarms on stdout, what was read on stderr. `columns` are SIGNAL=COLUMN pairs; times are in seconds.

    `thresholds` are NAME=NUMBER pairs; `rules`, `outputs` (sinks) and `form` (log source) name plug-ins.
    """
    overrides = parse_map(columns)
    limits = Thresholds().changed(parse(thresholds))
    judges = default_rules(rules)
    source = open_source(path, run, form)
    ends: list[sinks.Sink] = [_json_line(sys.stdout) if as_json else sinks.console(sys.stdout)]
    if webhook:
        try:
            ends.append(sinks.Webhook(webhook, extra={"source": path}))
        except ValueError as error:
            raise AgentRLError(str(error)) from error
    ends += [sinks.make(spec, path) for spec in outputs]
    watcher = Watcher(source, overrides, Monitor(limits, judges, ends))
    try:
        if once:
            watcher.take(final=True)
        else:
            _follow(watcher, every, settle)
    finally:
        sinks.close(ends)
        watcher.report(sys.stderr)


def parse_map(pairs: list[str]) -> dict[str, str]:
    """`signal=column` pairs; raises `AgentRLError` naming the pair that is not one."""
    mapping = {}
    for pair in pairs:
        signal_name, equals, column = pair.partition("=")
        if not equals or not signal_name or not column:
            raise AgentRLError(f"--map {pair}: expected SIGNAL=COLUMN, for example reward=critic/score/mean")
        mapping[signal_name.strip()] = column.strip()
    guess_mapping([], mapping)  # unknown signals are an error before the file is read
    return mapping


class Watcher:
    """Feeds a source into a monitor; the mapping grows with the columns that appear."""

    def __init__(self, source: Source, overrides: dict[str, str], monitor: Monitor) -> None:
        self.source, self.overrides, self.monitor = source, overrides, monitor
        self.columns: set[str] = set()
        self.mapping: SignalMap = guess_mapping([], overrides)
        self.steps = 0
        self.alarms: list[Alarm] = []
        self._assembler = StepAssembler()

    def take(self, final: bool = False) -> int:
        """Read what is new; the number of rows. `final`: also the step in progress."""
        read = 0
        while rows := self.source.poll(final):
            read += len(rows)
            for row in rows:
                for complete in self._assembler.add(row):
                    self._observe(complete)
        if final:
            self.settle()
        return read

    def settle(self) -> None:
        """Take the step in progress as complete."""
        for complete in self._assembler.flush():
            self._observe(complete)

    def _observe(self, row: Row) -> None:
        new = row.values.keys() - self.columns
        if new:
            self.columns |= new
            self.mapping = guess_mapping(self.columns, self.overrides)
            self.monitor.trainer = self.mapping.trainer
        metrics = self.mapping.apply(row.values)
        if not metrics or row.step is None:  # evaluation rows and the like
            return
        self.steps += 1
        self.alarms += self.monitor.observe(StepRecord(row.step, metrics))

    def report(self, out: TextIO) -> None:
        """What was read, under which names, and what is missing."""
        names = self.mapping.trainer or "plain"
        print(f"{self.source.path}: {self.source.kind}, {self.steps} steps, {names} names", file=out)
        for signal_name, column in self.mapping.columns.items():
            if column not in self.columns:
                print(f"  no column {column!r} for {signal_name}: {_nearby(column, self.columns)}", file=out)
        used = ", ".join(s if s == c else f"{s}={c}" for s, c in self.mapping.columns.items() if c in self.columns)
        print(f"  using {used or 'nothing: no column is known; name them with --map reward=COLUMN ...'}", file=out)
        if self.mapping.missing:
            print(f"  missing {', '.join(self.mapping.missing)}", file=out)
        if all(name in self.mapping.missing for name in _EARLY):
            print(
                "  neither clip_fraction nor delta_correct is logged: warnings will be late, see docs/alarms.md",
                file=out,
            )
        if self._assembler.late:
            print(f"  {self._assembler.late} rows came after their step was complete and were left out", file=out)
        for what, times in self.source.problems.items():
            print(f"  {times} x {what}", file=out)


def _nearby(column: str, columns: set[str]) -> str:
    last = column.rsplit("/", 1)[-1]
    close = sorted(c for c in columns if last in c)[:5] or sorted(columns)[:5]
    return "the log has " + (", ".join(close) if close else "no columns")


def _json_line(out: TextIO) -> sinks.Sink:
    def write(alarm: Alarm) -> None:
        whole = json.loads(sinks.as_json(alarm))
        keep = ("step", "rule", "level", "signals", "message", "remedy", "id")
        print(json.dumps({k: whole[k] for k in keep}, ensure_ascii=False), file=out, flush=True)

    return write


def _follow(watcher: Watcher, every: float, settle: float) -> None:
    """Poll until interrupted (SIGINT and SIGTERM end it cleanly)."""
    stop = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    previous = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM)}
    told, last_row = -math.inf, time.monotonic()
    try:
        while not stop:
            if watcher.take():
                last_row = time.monotonic()
            elif time.monotonic() - last_row > settle:
                watcher.settle()
            if watcher.steps >= 10 and told < 0:  # once: the columns of the first steps are known by now
                watcher.report(sys.stderr)
                told = 0
            time.sleep(every)
        watcher.settle()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
