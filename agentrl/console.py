"""What a person sees in a terminal: a progress line, tables, colours. Plain lines where it is not a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from agentrl.types import StepRecord

COLORS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "dim": 2, "bold": 1}
PLAIN_EVERY_S = 10.0  # a line of progress every so often where lines cannot be overwritten


def colors_on(stream: TextIO | None = None) -> bool:
    """Whether `stream` (stdout) shows colours: a terminal, and NO_COLOR (no-color.org) not set."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def color(text: str, name: str, stream: TextIO | None = None) -> str:
    """`text` in a colour of COLORS where they are on."""
    return f"\x1b[{COLORS[name]}m{text}\x1b[0m" if colors_on(stream) else text


def printable(text: str) -> str:
    """Rollout text for a terminal: control characters, which could drive it, are shown as escapes."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and numbers to the right; a rule under the header."""
    if not rows:
        return ""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts if i < len(row)) for i in range(max(map(len, texts)))]
    right = [
        i > 0 and all(_number(row[i]) for row in texts[1:] if i < len(row) and row[i].strip())
        for i in range(len(widths))
    ]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)).rstrip() for row in texts
    ]
    lines.insert(1, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def _number(text: str) -> bool:
    return text.strip().lstrip("+-−≤≥<>~").replace(",", "").replace(".", "").rstrip("%s×x").split(" ")[0].isdigit()


def print_json(value: Any) -> None:
    """One line of strict JSON on stdout."""
    from agentrl.runs.files import strict_json

    print(strict_json(value), flush=True)


def duration(seconds: float) -> str:
    """12 s, 3:05 or 2:03:05."""
    s = int(seconds + 0.5)
    if s < 60:
        return f"{s} s"
    return f"{s // 60}:{s % 60:02d}" if s < 3600 else f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"


class Unbreakable:
    """A text stream that takes whatever is written, also when nobody reads it any more.

    `train ... | head` closes the pipe, a hang-up closes the terminal: neither is a reason to end a run.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        with suppress(OSError, ValueError):  # the pipe or the terminal is gone; the stream was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not. What a closed pipe has left in the buffer is dropped, or the interpreter's end would fail."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unbreakable() -> Iterator[None]:
    """While entered, nothing that is printed can fail."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Unbreakable(out), Unbreakable(err)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = out, err


class Progress:
    """One line that is overwritten on a terminal; elsewhere a plain line now and then. Goes to stderr."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream: Any = Unbreakable(stream or sys.stderr)
        self.quiet = quiet
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._open = False  # a line without its line break is on the screen
        self._last = 0.0
        self._times: list[float] = []

    def note(self, text: str, *, last: bool = False) -> None:
        """Progress of something that has no steps of its own."""
        if self.quiet:
            return
        now = time.monotonic()
        if self.live:
            width = _width()
            self.stream.write("\r\x1b[2K" + text[: width - 1])
            self._open = True
        elif last or now - self._last >= PLAIN_EVERY_S:
            self.stream.write(text + "\n")
            self._last = now
        self.stream.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        self.end_line()
        self.stream.write(text + "\n")
        self.stream.flush()

    def step(self, record: StepRecord, steps: int) -> None:
        """Reward, likelihood of correct responses, tokens/s and time to go, after each training step."""
        m, n = record.metrics, record.step + 1
        self._times = [*self._times[-19:], m.get("t_step_s", 0.0)]
        left = (steps - n) * sum(self._times) / len(self._times)
        parts = [f"step {n}/{steps}", _bar(n / steps) if self.live else ""]
        for name, label, form in (
            ("reward", "reward", "{:.2f}"),
            ("logprob_correct", "log π⁺", "{:.3f}"),
            ("entropy", "entropy", "{:.2f}"),
            ("tokens_per_s", "", "{:,.0f} tok/s"),
        ):
            if name in m:
                parts.append(f"{label} {form.format(m[name])}".strip())
        parts.append(f"ETA {duration(left)}")
        self.note("  ".join(p for p in parts if p), last=n == steps)

    def end_line(self) -> None:
        """Leave the overwritten line as it is."""
        if self._open:
            self.stream.write("\n")
            self.stream.flush()
            self._open = False

    close = end_line


def _bar(share: float, width: int = 20) -> str:
    full = int(share * width + 0.5)
    return "█" * full + "░" * (width - full)


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 120
