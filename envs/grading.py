"""Grading mathematical answers: string equality, then exact integers, then math-verify in worker processes.

math-verify stops long computations with signals, which threads cannot use, and sympy can be made to compute for hours:
so it runs in worker processes with a deadline, and a worker that misses it is ended and replaced. Whether workers can
work at all is seen before the first answer is judged by one.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as DeadlineError
from dataclasses import dataclass
from typing import Any, Literal

from agentrl.envs.errors import ToolFailure
from agentrl.errors import need

MAX_ANSWER_CHARACTERS = 2_000  # a longer answer is wrong: no exercise has one, and parsing it is an attack on time
DEADLINE_S = 5.0
START_S = 120.0  # for the first worker process to start
_NOISE = re.compile(r"\\(?:left|right|!|,|;|:|displaystyle)(?![a-zA-Z])|[\s$]|\\(?:text|mathrm|mbox)\s*(?=\{)")
_BRACE = re.compile(r"\\boxed\s{0,9}\{|\\\\(?!boxed)|\\[{}]|[{}]")  # a box, an escaped character, a brace
_INTEGER = re.compile(r"[+-]?\d{1,30}")

Method = Literal["string", "integer", "math-verify", "none", "too long", "deadline", "error"]


@dataclass(frozen=True)
class Grade:
    """Whether an answer is correct, and what decided it."""

    correct: bool
    method: Method


def last_boxed(text: str) -> tuple[int, int] | None:
    """Character offsets (start, end) of the content of the last complete `\\boxed{...}`; None where there is none.

    Braces are balanced as LaTeX does it: `\\{` and `\\}` are characters. Of several boxes the one that begins last
    counts, an unclosed one does not. Linear in the length of `text`, whatever stands in it.
    """
    opened: list[int | None] = []  # of each open brace: where its box's content begins, None where it is no box
    found: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "}":
            start = opened.pop() if opened else None
            if start is not None and (found is None or start > found[0]):
                found = start, match.start()
        elif token == "{":
            opened.append(None)
        elif token.endswith("{") and len(token) > 2:
            opened.append(match.end())
    return found


def normalize(answer: str) -> str:
    """Without white space, dollar signs, spacing commands and a final full stop."""
    return _NOISE.sub("", answer).rstrip(".")


def grade(answer: str | None, golden_answers: Sequence[str], *, deadline_s: float = DEADLINE_S) -> Grade:
    """Grade one extracted answer (the content of the box) against any of the golden answers.

    Never raises for what stands in `answer`: too long, unparsable or too slow to compare is wrong; `method` says which.
    Raises ToolFailure where no worker process can be started: then nothing is known about any answer.
    """
    if answer is None or not answer.strip():
        return Grade(False, "none")
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return Grade(False, "too long")
    given = normalize(answer)
    golds = [normalize(g) for g in golden_answers]
    if given in golds:
        return Grade(True, "string")
    if _INTEGER.fullmatch(given) and all(_INTEGER.fullmatch(g) for g in golds):
        return Grade(int(given) in {int(g) for g in golds}, "integer")
    need("the comparison of mathematical expressions", "math_verify", "pebble")
    from pebble import ProcessExpired

    for _ in range(2):
        try:
            future = _pool().schedule(_verify, args=[answer, list(golden_answers)], timeout=deadline_s)
            return Grade(bool(future.result()), "math-verify")
        except DeadlineError:
            return Grade(False, "deadline")
        except (ProcessExpired, CancelledError):
            continue  # the worker was killed, perhaps from outside; if the answer kills a second one, it is its fault
        except ToolFailure:
            raise
        except Exception:  # math-verify raised
            return Grade(False, "error")
    return Grade(False, "error")


def grade_response(text: str, golden_answers: Sequence[str], *, deadline_s: float = DEADLINE_S) -> Grade:
    """`grade` of the last complete box of a whole response; no box is "none"."""
    span = last_boxed(text)
    return grade(None if span is None else text[slice(*span)], golden_answers, deadline_s=deadline_s)


def _verify(answer: str, golden_answers: list[str]) -> bool:
    """In a worker process."""
    from math_verify import parse, verify

    given = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # type: ignore[arg-type]
    for gold in golden_answers:
        wanted = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)  # type: ignore[arg-type]
        if verify(wanted, given, timeout_seconds=None):
            return True
    return False


def _prepare() -> None:
    """In a new worker process: what takes a second to import is not the first answer's time."""
    import math_verify  # noqa: F401

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we, not it, watch the time


_lock = threading.Lock()
_workers: Any = None


def _pool() -> Any:
    """One pool per process, made on first use; workers are spawned, because a forked torch process may hang."""
    global _workers
    with _lock:
        if _workers is None or _workers[0] != os.getpid() or not _workers[1].active:
            from pebble import ProcessPool

            workers = min(4, os.cpu_count() or 1)
            context = multiprocessing.get_context("spawn")
            pool = ProcessPool(max_workers=workers, max_tasks=1000, initializer=_prepare, context=context)
            try:
                works = pool.schedule(_verify, args=["\\frac{1}{2}", ["0.5"]]).result(timeout=START_S)
            except Exception as e:
                works, reason = False, f"{type(e).__name__}: {e}"
            else:
                reason = "math-verify does not find that 1/2 is 0.5"
            if not works:
                pool.stop()
                pool.join(timeout=2)
                raise ToolFailure(
                    f"answers cannot be graded: the worker processes do not work ({reason}); a script that grades "
                    'must have its own work under `if __name__ == "__main__":`, and math-verify must be installed'
                )
            _workers = (os.getpid(), pool)
            atexit.register(_stop)
        return _workers[1]


def _stop() -> None:
    global _workers
    if _workers is not None and _workers[0] == os.getpid():
        _workers[1].stop()
        _workers[1].join(timeout=2)
    _workers = None
