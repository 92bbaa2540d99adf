"""Follows a trainer's log with the monitors: what `agentrl watch` runs. No torch."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TextIO

from agentrl.errors import AgentRLError, RunError
from agentrl.monitors import Monitor, bodies, notices, sinks
from agentrl.monitors.alarms import default_rules
from agentrl.monitors.follow import Following
from agentrl.monitors.signals import SIGNALS, SignalMap, guess_mapping
from agentrl.monitors.sources import Row, Source, StepAssembler, open_source
from agentrl.monitors.thresholds import Thresholds, parse
from agentrl.monitors.told import Memory, Teller
from agentrl.types import Alarm, StepRecord

FAILURE_S = 5.0  # how often it is looked whether the run has failed
_EARLY = ("clip_fraction", "delta_correct")  # without either, the earliest evidence cannot be had


NOT_TOLD = 1  # exit code where somebody was not told, or the log is gone


def watch(
    path: str,
    *,
    columns: list[str],
    run: str | None = None,
    as_json: bool = False,
    once: bool = False,
    every: float = 1.0,
    settle: float = 10.0,
    stall: float = 1800.0,
    webhook: str | None = None,
    thresholds: Sequence[str] = (),
    rules: Sequence[str] = (),
    outputs: Sequence[str] = (),
    form: str | None = None,
    where: Sequence[str] = (),
    step: str | None = None,
    explain: bool = False,
    recorder: Recorder | None = None,
    whose: Mapping[str, Any] | None = None,
    failure: Callable[[], Alarm | None] = lambda: None,
) -> int:
    """Alarms on stdout, what was read on stderr. `columns` are SIGNAL=COLUMN pairs; times are in seconds.

    `thresholds` are NAME=NUMBER pairs, `where` COLUMN=VALUE pairs that rows must have; `step` names the step's column;
    `rules`, `outputs` (sinks) and `form` (log source) name plug-ins. `explain`: no alarms, but what was understood.
    `recorder` keeps what is read, `whose` is told with every posted alarm (`bodies.about`), `failure` says that the run
    has failed. Returns the exit code: NOTHING where at the end of the input nothing could be judged, NOT_TOLD where an
    alarm could not be delivered or the log was gone at the end.
    """
    overrides = parse_map(columns)
    limits = Thresholds().changed(parse(thresholds))
    judges = default_rules(rules)
    _readable(path)
    only = pairs("--where", where)
    log = Following(path, lambda newest: open_source(path, run, form, where=only, step=step, newest=newest))
    posted: list[sinks.Sink] = []
    if webhook:
        from agentrl.monitors.delivery import Webhook  # threads and queues, for who posts

        try:
            posted.append(Webhook(webhook, extra=whose if whose is not None else bodies.about(source=path)))
        except ValueError as error:
            raise AgentRLError(str(error)) from error
    posted += [sinks.make(spec, path) for spec in outputs]
    shown: list[sinks.Sink] = [_json_line(sys.stdout) if as_json else sinks.console(sys.stdout, strict=True)]
    if recorder is not None:
        shown.append(recorder.alarm)
    teller = Teller(shown, posted, Memory.of(path) if posted else Memory())
    watcher = Watcher(log, overrides, Monitor(limits, judges, [] if explain else [teller]), recorder)
    log.other = partial(_other, watcher, teller)
    try:
        if once or explain:
            watcher.take(final=True)
            ended = True
        else:
            ended = _follow(watcher, teller, Patience(path, settle, stall), every, failure)
    finally:
        missing = teller.close()
        log.close()
        if explain:
            print("\n".join(explanation(watcher)))
        else:
            watcher.report(sys.stderr)
        print("".join(f"{line}\n" for line in missing), end="", file=sys.stderr)
    if log.gone:
        print(f"{path} is gone: what came after step {watcher.last_step} was not read", file=sys.stderr)
    if ended and not watcher.steps:
        print(nothing(watcher), file=sys.stderr)
        return NOTHING
    return NOT_TOLD if missing or log.gone else 0


def _readable(path: str) -> None:
    """RunError for what would be waited for without end, or may not be read."""
    where = Path(path).expanduser()
    try:
        if where.is_fifo():
            raise RunError(f"{path} is a pipe, whose past cannot be read again: agentrl watch - < {path}")
        if where.is_dir():
            next(where.iterdir(), None)
        elif where.exists():
            where.open("rb").close()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; give this user the right to, or a copy") from error


def _other(watcher: Watcher, teller: Teller, run: str) -> None:
    """The first row of a run comes; of one after another it is said."""
    if watcher.steps:
        print(f"{watcher.source.path}: another run, after {watcher.steps} steps; read from its start", file=sys.stderr)
    watcher.begin()
    teller.begin(run)
    if watcher.recorder is not None:
        watcher.recorder.begin(run, watcher)


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE pairs; AgentRLError names the one that is not."""
    out = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise AgentRLError(f"{option} {text}: expected COLUMN=VALUE, for example type=train")
        out[name] = value
    return out


def parse_map(pairs: list[str]) -> dict[str, str]:
    """`signal=column` pairs; raises `AgentRLError` naming the pair that is not one."""
    mapping = {}
    for pair in pairs:
        signal_name, equals, column = pair.partition("=")
        if not equals or not signal_name or not column:
            raise AgentRLError(f"--map {pair}: expected SIGNAL=COLUMN, for example reward=critic/score/mean")
        mapping[signal_name.strip()] = column.strip()
    if mapping:
        guess_mapping([], mapping)  # unknown signals are an error before the file is read
    return mapping


class Recorder(Protocol):
    """Keeps what is watched: `watch --to` writes a run directory."""

    def begin(self, run: str, watcher: Watcher) -> None:
        """The first row of a run comes; `run` names it."""

    def again(self) -> None:
        """The same run from its start: forget its rows."""

    def row(self, step: int, metrics: dict[str, float], values: dict[str, float]) -> None:
        """One step: canonical signals, and everything that the log has of it."""

    def alarm(self, alarm: Alarm) -> None:
        """One alarm."""

    def looked(self) -> None:
        """All that is there was read."""


class Watcher:
    """Feeds a source into a monitor; the mapping grows with the columns that appear."""

    def __init__(
        self, log: Following, overrides: dict[str, str], monitor: Monitor, recorder: Recorder | None = None
    ) -> None:
        self.log, self.overrides, self.monitor, self.recorder = log, overrides, monitor, recorder
        self.columns: set[str] = set()
        self.mapping: SignalMap = guess_mapping([], overrides)
        self.steps = 0
        self.last_step = 0  # that was judged
        self.newest_step = -1  # that was read
        self.rows = 0
        self.odd: dict[str, int] = {}  # values that cannot be what their signal is -> how often
        self._assembler = StepAssembler()
        log.again = self._again

    @property
    def source(self) -> Source:
        """What is read now."""
        return self.log.source

    def begin(self) -> None:
        """Another run: nothing of the one before is left."""
        self.settle()
        self.columns, self.mapping = set(), guess_mapping([], self.overrides)
        self._again()

    def _again(self) -> None:
        """The same run from its start: a resume has changed its past."""
        self.monitor.restart()
        self.steps, self._assembler = 0, StepAssembler()
        if self.recorder is not None:
            self.recorder.again()

    def take(self, final: bool = False) -> int:
        """Read what is new; the number of rows. `final`: also the step in progress."""
        read = 0
        while rows := self.log.poll(final):
            read += len(rows)
            self.rows += len(rows)
            for row in rows:
                self.newest_step = self.newest_step if row.step is None else row.step
                for complete in self._assembler.add(row):
                    self._observe(complete)
        if final:
            self.settle()
        if self.recorder is not None:
            self.recorder.looked()
        return read

    def settle(self) -> None:
        """Take the step in progress as complete."""
        for complete in self._assembler.flush():
            self._observe(complete)

    def _observe(self, row: Row) -> None:
        new = row.values.keys() - self.columns
        if new and len(self.columns) < MOST_COLUMNS:
            self.columns |= new
            self.mapping = guess_mapping(self.columns, self.overrides)
            self.monitor.trainer, self.monitor.clipped_in_loss = self.mapping.trainer, self.mapping.clipped_in_loss
        metrics = self._plausible(self.mapping.apply(row.values))
        if not metrics or row.step is None:  # evaluation rows and the like
            return
        self.steps += 1
        self.last_step = row.step
        if self.recorder is not None:
            self.recorder.row(row.step, metrics, row.values)
        self.monitor.observe(StepRecord(row.step, metrics))

    def _plausible(self, metrics: dict[str, float]) -> dict[str, float]:
        """Without shares above 1: percentages under a name that does not say so."""
        odd = [k for k, v in metrics.items() if SIGNALS[k].unit == "share" and v > 1 + 1e-6 and math.isfinite(v)]
        for signal_name in odd:
            column = self.mapping.columns.get(signal_name, signal_name)
            what = f"{signal_name}={plain(column)} is above 1 and no share (a percentage?): left out"
            self.odd[what] = self.odd.get(what, 0) + 1
            del metrics[signal_name]
        return metrics

    def _logged(self, name: str) -> bool:
        """Whether a signal is there and was ever different from 0."""
        one = self.monitor.series.get(name)
        return one is not None and (any(one.values) or bool(one.first))

    def _needs(self) -> int | None:
        """Rows in a mean from which a critical loss of this run's reward would show; None where that is at hand."""
        reward, t = self.monitor.series.get("reward"), self.monitor.thresholds.collapse
        if reward is None or reward.falls is None or reward.count < 2 * t.rising_span:
            return None
        return reward.falls.needs(t.collapse_lost, t.collapse_z)

    def report(self, out: TextIO) -> None:
        """What was read, under which names, and what is missing."""
        names = self.mapping.trainer or "plain"
        print(f"{self.source.path}: {self.source.kind}, {self.steps} steps, {names} names", file=out)
        for signal_name, column in self.mapping.columns.items():
            if column not in self.columns:
                print(f"  no column {column!r} for {signal_name}: {_nearby(column, self.columns)}", file=out)
        used = ", ".join(
            s if s == c else f"{s}={plain(c)}" for s, c in self.mapping.columns.items() if c in self.columns
        )
        used += "".join(f", {s}=mean of {len(c)} columns" for s, c in self.mapping.pooled.items())
        print(f"  using {used or 'nothing: no column is known; name them with --map reward=COLUMN ...'}", file=out)
        if self.mapping.missing:
            print(f"  missing {', '.join(self.mapping.missing)}", file=out)
        if not any(self._logged(name) for name in _EARLY):
            print(
                "  neither clip_fraction nor delta_correct is logged (0 is not): warnings will be late, see "
                "docs/alarms.md",
                file=out,
            )
        if (rows := self._needs()) is not None:
            print(
                f"  the reward is too noisy to show a loss of half: needs a mean of about {rows} rows, or more "
                "responses a row",
                file=out,
            )
        if self._assembler.late:
            print(f"  {self._assembler.late} rows came after their step was complete and were left out", file=out)
        if self._assembler.restarts:
            print(f"  {self._assembler.restarts} x steps went back: a restart, the monitors warm up again", file=out)
        if self.source.left_out:
            print(f"  {self.source.left_out} rows were left out by --where", file=out)
        if len(self.columns) >= MOST_COLUMNS:
            print(f"  more than {MOST_COLUMNS} columns: later ones were left out", file=out)
        for what, times in (*self.source.problems.items(), *self.odd.items()):
            print(f"  {times} x {plain(what)}", file=out)


MOST_COLUMNS = 20_000
NOTHING = 2  # exit code where nothing could be judged
#: What a missing signal costs.
COSTS = {
    "reward": "nearly everything: no decline, no crash, no phase; name it with --map reward=COLUMN",
    "clip_fraction": "the earliest warning (updates too large): where neither it nor delta_correct is there, "
    "warnings are late",
    "entropy": "entropy rise and collapse, and what tells a dead tool from a collapse",
    "delta_correct": "the death spiral; only agentrl and its callbacks measure it",
    "probe_logprob": "nothing: it is shown, no rule uses it",
    "logprob_correct": "phases, and one of three signs of degradation",
    "logprob_incorrect": "nothing: it is shown, no rule uses it",
    "grad_norm": "gradient explosions and numerical failure before they are NaN",
    "response_length": "length drift, and what tells a dead tool from a collapse",
    "valid_action_ratio": "an agent that forgets its protocol",
    "kl": "drift from the reference as a sign of reward hacking",
    "mismatch": "a sampler that drifts from the trainer",
    "truncated_share": "runs that grow into the length limit",
    "validation": "overfitting and reward hacking: the training reward alone cannot show them",
}


def plain(text: str) -> str:
    """A name from a log without what a terminal would obey."""
    short = text if len(text) <= 200 else text[:200] + "..."
    return "".join(c if c.isprintable() else "?" for c in short)


def explanation(watcher: Watcher) -> list[str]:
    """What was understood of a log: format, signals, and what each missing one costs."""
    mapping, source = watcher.mapping, watcher.source
    out = [
        f"{source.path}: read as {source.kind}; {watcher.rows} rows, {watcher.steps} steps, "
        f"{len(watcher.columns)} columns; names of {mapping.trainer or 'no trainer in particular'}",
        "used:",
    ]
    for signal_name, column in mapping.columns.items():
        there = "" if column in watcher.columns else "   (no such column)"
        out.append(f"  {signal_name:20} <- {plain(column)}  [{SIGNALS[signal_name].unit}]{there}")
    out += [
        f"  {s:20} <- mean of {', '.join(map(plain, c[:3]))}{' ...' if len(c) > 3 else ''}"
        for s, c in mapping.pooled.items()
    ]
    known = mapping.columns.keys() | mapping.pooled.keys()
    out.append("missing, and what it costs:")
    out += [f"  {name:20} {cost}" for name, cost in COSTS.items() if name not in known]
    unused = sorted(watcher.columns - set(mapping.columns.values()) - {c for cs in mapping.pooled.values() for c in cs})
    if unused:
        out.append(f"not used: {len(unused)} columns, for example {', '.join(map(plain, unused[:8]))}")
    out += [f"problem: {times} x {plain(what)}" for what, times in (*source.problems.items(), *watcher.odd.items())]
    return out


def nothing(watcher: Watcher) -> str:
    """Why nothing could be judged, and what to do."""
    source = watcher.source
    if not watcher.rows:
        found = (
            f"no row with a number ({'; '.join(f'{n} x {plain(p)}' for p, n in source.problems.items()) or 'empty'})"
        )
        what = "check the path, or name the format with --format (agentrl watch --help lists them)"
    else:
        columns = ", ".join(map(plain, sorted(watcher.columns)[:8]))
        found = f"{watcher.rows} rows but no known column; there are {columns}"
        what = "name the reward with --map reward=COLUMN, and --step COLUMN if the step has a name of its own"
    return f"nothing to judge in {source.path}, read as {source.kind}: {found}. {what[0].upper()}{what[1:]}."


def _nearby(column: str, columns: set[str]) -> str:
    last = column.rsplit("/", 1)[-1]
    close = sorted(c for c in columns if last in c)[:5] or sorted(columns)[:5]
    return "the log has " + (", ".join(map(plain, close)) if close else "no columns")


def _json_line(out: TextIO) -> sinks.Sink:
    def write(alarm: Alarm) -> None:
        whole = json.loads(sinks.as_json(alarm))
        keep = ("step", "rule", "level", "signals", "message", "remedy", "id")
        print(json.dumps({k: whole[k] for k in keep}, ensure_ascii=False), file=out, flush=True)

    return write


class Patience:
    """When a log has not grown for too long, or is gone: raised once, until it grows again.

    Too long is `stall` seconds (0: never), and five times the longest that it took so far.
    """

    def __init__(self, source: str, settle: float, stall: float) -> None:
        self.source, self.settle, self.stall = source, settle, stall
        self.last = time.monotonic()
        self._longest = 0.0
        self._gone: float | None = None
        self._told = self._told_gone = False

    def grew(self) -> None:
        """Rows came."""
        now = time.monotonic()
        if self._told:
            print(f"{self.source} grows again", file=sys.stderr)
        else:
            self._longest = max(self._longest, now - self.last)
        self.last, self._told = now, False

    def notice(self, step: int, gone: bool) -> Alarm | None:
        """What to tell now."""
        now = time.monotonic()
        if not gone:
            self._gone, self._told_gone = None, False
        elif self._gone is None:
            self._gone = now
        if self._gone is not None and not self._told_gone and now - self._gone >= self.settle:
            self._told_gone = True
            return notices.gone(step, self.source)
        quiet = now - self.last
        if gone or self._told or not self.stall or quiet < max(self.stall, 5 * self._longest):
            return None
        self._told = True
        return notices.stalled(step, self.source, quiet)


def _follow(
    watcher: Watcher, teller: Teller, patience: Patience, every: float, failure: Callable[[], Alarm | None]
) -> bool:
    """Poll until interrupted (SIGINT and SIGTERM end it cleanly), or the input ends; whether it ended.

    What is there at first is the past.
    """
    stop = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    previous = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM)}
    told, looked = False, -math.inf
    teller.past = True
    try:
        while not stop:
            if watcher.take():
                patience.grew()
            elif time.monotonic() - patience.last > patience.settle:
                watcher.settle()
            tell = [patience.notice(watcher.last_step, watcher.log.gone)]
            if time.monotonic() - looked > FAILURE_S:
                looked = time.monotonic()
                tell.append(failure())
            for notice in tell:
                if notice is not None:
                    teller.notice(notice)
            if teller.past:
                teller.past, teller.past_step = False, watcher.newest_step
                print(
                    f"{patience.source}: {watcher.steps} steps so far; following it, Ctrl-C ends this", file=sys.stderr
                )
            if watcher.steps >= 10 and not told:  # once: the columns of the first steps are known by now
                watcher.report(sys.stderr)
                told = True
            if watcher.source.ended:
                watcher.take(final=True)
                return True
            time.sleep(every)
        watcher.settle()
        return False
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
